// What the kernels use of CUDA. Without nvcc they are compiled for the host against
// tests/cuda_host, which supplies the same names.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define CEK_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include "cuda_host.h"
#define CEK_LAUNCH(kernel, grid, block, stream, ...) \
  cuda_host::launch(grid, block, [=] { kernel(__VA_ARGS__); })
#endif

#include "../numerics.h"
#include "kernels.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// A grid's first dimension may be large; kernels walk over what exceeds it.
inline dim3 grid_of(int64_t blocks, int64_t y = 1) {
  return dim3(unsigned(blocks < 1 ? 1 : blocks > 0x7fffffff ? 0x7fffffff : blocks),
              unsigned(y < 65535 ? y : 65535));
}

// V elements that are read or written at once.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
}

// The sum over a block of up to 1024 threads, in thread 0: always in the same order.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[32];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kFullWarp, x, offset);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // an earlier sum may still be read
  if (lane == 0) warps[warp] = x;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < int(blockDim.x + 31) / 32; ++i) total += warps[i];
  }
  return total;
}

}  // namespace
}  // namespace cuda
}  // namespace cekernels
