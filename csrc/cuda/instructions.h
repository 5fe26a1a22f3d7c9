// Single instructions that the compiler does not choose by itself, and dynamic shared memory.
#pragma once

#include <atomic>

#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

#ifdef __CUDACC__
#define CEK_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// Allows a kernel `bytes` of dynamic shared memory, more than 48 KiB, on the current device: once per
// device, which `devices` records per kernel. Several threads may do it at once.
inline void allow_shared(const void* kernel, size_t bytes, std::atomic<uint64_t>& devices) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return;  // the launch reports it
  const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
  if ((devices.load(std::memory_order_relaxed) & bit) != 0) return;
  constexpr auto kLimit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (cudaFuncSetAttribute(kernel, kLimit, int(bytes)) == cudaSuccess) devices |= bit;
}

// As CEK_LAUNCH, with `bytes` of dynamic shared memory, a constant.
#define CEK_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...)                  \
  do {                                                                              \
    static std::atomic<uint64_t> devices{0};                                        \
    if ((bytes) > 48 << 10) {                                                       \
      allow_shared(reinterpret_cast<const void*>(kernel), bytes, devices);          \
    }                                                                               \
    kernel<<<grid, block, bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
  } while (false)

// A number of elements by which a pointer advances repeatedly. The compiler does not see what it
// is, and adds it each time; otherwise it would compute its multiples for each use.
template <class T>
struct Step {
  int64_t bytes;
  __device__ __forceinline__ explicit Step(int64_t elements) : bytes(elements * sizeof(T)) {
    asm("" : "+l"(bytes));
  }
  template <class Pointer>
  __device__ __forceinline__ Pointer from(Pointer p) const {
    p = reinterpret_cast<Pointer>(reinterpret_cast<uintptr_t>(p) + bytes);
    asm("" : "+l"(p));
    return p;
  }
};

// The larger number; NaN if x is NaN.
__device__ __forceinline__ float at_least(float x, float least) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(least));
  return y;
}
__device__ __forceinline__ double at_least(double x, double least) { return x < least ? least : x; }

// Starts to copy `bytes` of 16 bytes from global to shared memory; zeros for the others.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for the copies of this thread, except for its last kPending groups.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#else
#define CEK_DYNAMIC_SHARED(name) unsigned char* const name = cuda_host::dynamic_shared()
#define CEK_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \
  cuda_host::launch(grid, block, [=] { kernel(__VA_ARGS__); }, bytes)

template <class T>
struct Step {
  int64_t elements;
  explicit Step(int64_t elements) : elements(elements) {}
  template <class Pointer>
  Pointer from(Pointer p) const {
    return p + elements;
  }
};
template <class T>
T at_least(T x, T least) {
  return x < least ? least : x;
}
inline void copy_async(void* to, const void* from, int bytes) {
  memset(to, 0, 16);
  memcpy(to, from, size_t(bytes));
}
inline void commit_copies() {}
template <int>
void wait_copies() {}
#endif

}  // namespace
}  // namespace cuda
}  // namespace cekernels
