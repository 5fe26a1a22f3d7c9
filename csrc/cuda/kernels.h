// Launch functions of the CUDA kernels. `workspace` has workspace_bytes(p) bytes; `stream` is a
// cudaStream_t. Each returns CUDA's error message for the launch, or null.
#pragma once

#include "../params.h"

namespace cekernels {
namespace cuda {

#define CEK_DECLARE_RUN(Params)                                    \
  const char* run(const Params& p, void* workspace, void* stream); \
  size_t workspace_bytes(const Params& p);
CEK_FOR_EACH_KERNEL(CEK_DECLARE_RUN)
#undef CEK_DECLARE_RUN

}  // namespace cuda
}  // namespace cekernels
