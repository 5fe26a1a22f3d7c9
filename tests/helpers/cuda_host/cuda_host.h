// Host versions of the CUDA built-ins used by csrc/cuda: a test tool that runs the kernels' logic
// without a GPU. The threads of a block are fibers of one operating-system thread; each runs until
// it reaches a barrier or a warp-wide exchange. A value that a missing barrier leaves undefined on
// a GPU is therefore read here before it is written, in one of the two orders in which threads can
// be started (cuda_host::reversed).
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0 };
typedef struct CUstream_st* cudaStream_t;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
#endif

namespace cuda_host {

inline bool reversed = false;
inline bool ends_only = false;  // run only the first and the last block of a grid
constexpr size_t kStack = 128 << 10;
constexpr unsigned kMaxGrid = 5;  // kernels must loop over work beyond the grid

enum class State { ready, at_block, at_warp, done };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state = State::ready;
  void* fake_stack = nullptr;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> slots;  // the value each thread shares with its warp
  ucontext_t scheduler;
  void* scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  size_t current = 0;
  const std::function<void()>* kernel = nullptr;
};
inline Block block;

// AddressSanitizer must be told which stack is in use.
inline void leaving(void** save, const void* bottom, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}
inline void arrived(void* save, const void** bottom, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}

inline void wait(State state) {
  Fiber& self = block.fibers[block.current];
  self.state = state;
  leaving(state == State::done ? nullptr : &self.fake_stack, block.scheduler_bottom,
          block.scheduler_size);
  swapcontext(&self.context, &block.scheduler);
  arrived(self.fake_stack, &block.scheduler_bottom, &block.scheduler_size);
}

inline void enter() {
  arrived(nullptr, &block.scheduler_bottom, &block.scheduler_size);
  (*block.kernel)();
  wait(State::done);
}

inline void resume(size_t index) {
  block.current = index;
  threadIdx = dim3(unsigned(index));
  Fiber& fiber = block.fibers[index];
  leaving(&block.scheduler_fake, fiber.stack.data(), fiber.stack.size());
  swapcontext(&block.scheduler, &fiber.context);
  arrived(block.scheduler_fake, nullptr, nullptr);
}

// Releases the threads of [first, last) that wait in `state` once all that still run wait there.
inline bool release(size_t first, size_t last, State state) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    const State s = block.fibers[i].state;
    if (s != state && s != State::done) return false;
    any |= s == state;
  }
  for (size_t i = first; any && i < last; ++i) {
    if (block.fibers[i].state == state) block.fibers[i].state = State::ready;
  }
  return any;
}

inline void run_block(size_t threads) {
  block.fibers.resize(threads);
  block.slots.assign(threads, 0);
  for (Fiber& fiber : block.fibers) {
    fiber.stack.resize(kStack);
    fiber.state = State::ready;
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    bool ran = false, unfinished = false;
    for (size_t i = 0; i < threads; ++i) {
      const size_t index = reversed ? threads - 1 - i : i;
      if (block.fibers[index].state == State::ready) {
        resume(index);
        ran = true;
      }
      unfinished |= block.fibers[index].state != State::done;
    }
    if (!unfinished) return;
    bool released = release(0, threads, State::at_block);
    for (size_t first = 0; first < threads; first += 32) {
      const size_t last = first + 32 < threads ? first + 32 : threads;
      released |= release(first, last, State::at_warp);
    }
    if (!ran && !released) {
      fprintf(stderr, "cuda_host: threads wait at different barriers\n");
      abort();
    }
  }
}

inline unsigned next_block(unsigned block, unsigned count) {
  return ends_only && block + 1 < count ? count - 1 : block + 1;
}

inline std::vector<uint64_t> shared;  // dynamic shared memory of the block, aligned to 16 bytes
inline unsigned char* dynamic_shared() {
  const uintptr_t start = reinterpret_cast<uintptr_t>(shared.data());
  return reinterpret_cast<unsigned char*>((start + 15) / 16 * 16);
}

template <class Kernel>
void launch(dim3 grid, dim3 threads, Kernel kernel, size_t bytes = 0) {
  shared.assign(bytes / sizeof(uint64_t) + 2, 0);
  const std::function<void()> call = kernel;
  block.kernel = &call;
  gridDim = dim3(grid.x < kMaxGrid || ends_only ? grid.x : kMaxGrid, grid.y);
  blockDim = threads;
  for (unsigned y = 0; y < gridDim.y; y = next_block(y, gridDim.y)) {
    for (unsigned x = 0; x < gridDim.x; x = next_block(x, gridDim.x)) {
      blockIdx = dim3(x, y);
      run_block(threads.x);
    }
  }
}

// Each thread shares a value; after all of its warp have, it gets the value of thread `from`.
template <class T>
T exchange(T value, size_t from) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "");
  const size_t me = block.current;
  memcpy(&block.slots[me], &value, sizeof(T));
  wait(State::at_warp);
  T seen;
  memcpy(&seen, &block.slots[from < block.slots.size() ? from : me], sizeof(T));
  wait(State::at_warp);
  return seen;
}

}  // namespace cuda_host

inline void __threadfence() {}
inline void __syncthreads() { cuda_host::wait(cuda_host::State::at_block); }
inline void __syncwarp(unsigned = ~0u) { cuda_host::wait(cuda_host::State::at_warp); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_host::exchange(value, cuda_host::block.current / 32 * 32 + size_t(lane % 32));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const size_t me = cuda_host::block.current;
  return cuda_host::exchange(value, me % 32 + delta < 32 ? me + delta : me);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const size_t me = cuda_host::block.current;
  return cuda_host::exchange(value, me % 32 >= delta ? me - delta : me);
}

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
