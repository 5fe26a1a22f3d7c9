// The CUDA kernels' launchers. `workspace` has workspace_bytes(p) bytes; the stream is a
// cudaStream_t. Each returns what CUDA says went wrong with the launch, or null.
#pragma once

#include "../params.h"

namespace cekernels {
namespace cuda {

const char* run(const LinearForward& p, void* workspace, void* stream);
const char* run(const LinearBackward& p, void* workspace, void* stream);
const char* run(const MaskedLoss& p, void* workspace, void* stream);
const char* run(const MaskedLossBackward& p, void* workspace, void* stream);
const char* run(const ScaleGradient& p, void* workspace, void* stream);
const char* run(const FillMasked& p, void* workspace, void* stream);
const char* run(const Shapes& p, void* workspace, void* stream);

size_t workspace_bytes(const LinearBackward& p);
size_t workspace_bytes(const MaskedLoss& p);
template <class Params>
size_t workspace_bytes(const Params&) {
  return 0;
}

}  // namespace cuda
}  // namespace cekernels
