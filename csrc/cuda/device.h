// The parts of CUDA used by the kernels, and common device functions. Without nvcc the kernels are
// compiled for the host against tests/helpers/cuda_host, which provides the same names.
#pragma once

#include <type_traits>

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
// Resident blocks of 256 threads per multiprocessor. Without this bound the compiler spills
// registers to raise occupancy.
constexpr int kResidentBlocks = 4;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// A grid of at most the largest size that CUDA allows; kernels loop over the remaining blocks.
inline dim3 grid_of(int64_t blocks, int64_t y = 1) {
  return dim3(unsigned(blocks < 1            ? 1
                       : blocks > 0x7fffffff ? 0x7fffffff
                                             : blocks),
              unsigned(y < 65535 ? y : 65535));
}

// V adjacent elements that are read or written together.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};

// Stores 8 or 16 bytes at once. (The compiler merges the branches of a choice between one vector
// and its elements, and then stores the elements.)
template <class T, int V>
__device__ __forceinline__ void store_vector(T* to, const Pack<T, V>& pack) {
  static_assert(sizeof(pack) == 8 || sizeof(pack) == 16, "");
#ifdef __CUDACC__
  if constexpr (std::is_same<T, double>::value) {
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(to), "d"(pack.v[0]), "d"(pack.v[1])
                 : "memory");
  } else if constexpr (sizeof(pack) == 16) {
    const auto x = bit_cast<Pack<float, 4>>(pack);
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.v[0]), "f"(x.v[1]),
                 "f"(x.v[2]), "f"(x.v[3])
                 : "memory");
  } else {
    const auto x = bit_cast<Pack<float, 2>>(pack);
    asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x.v[0]), "f"(x.v[1]) : "memory");
  }
#else
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
#endif
}

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
}

// a / b for a >= 0 and b > 0. The compiler implements 64-bit division as a function call, which
// costs registers (and spills) around it even if it is not executed.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return uint32_t(a) / uint32_t(b);
  uint64_t result = 0, rest = 0;
#pragma unroll 1
  for (int bit = 62; bit >= 0; --bit) {
    rest = rest << 1 | (uint64_t(a) >> bit & 1);
    result <<= 1;
    if (rest >= uint64_t(b)) rest -= uint64_t(b), ++result;
  }
  return int64_t(result);
}

// Planes of images are divided into pieces; a block processes one piece at a time.
constexpr int kPieceThreads = 256;
constexpr int64_t kPieceElements = 4096;

inline int64_t pieces_of(int64_t plane) { return divide_up(plane, kPieceElements); }

// The division of a batch of images among blocks: pieces of planes (blockIdx.x, with the sample) and,
// where these are few or have many channels, `parts` (blockIdx.y) of `each` channels, or pixels of
// channels_last images. `across` threads process a plane, those beside them further channels.
// Depends on the shape alone.
struct Division {
  int64_t pieces, parts, each;
  int across;

  dim3 grid(int64_t batch) const { return grid_of(batch * pieces, parts); }
};

constexpr int64_t kWantedBlocks = 256;  // for a large GPU
constexpr int64_t kFewElements = 1024;  // of a block: no further division
constexpr int64_t kManyElements = 32768;
constexpr int64_t kFewChannels = 4;

// For vectors of V elements; `by_pixels`: elements of all channels follow each other.
inline Division division_of(int64_t batch, int64_t channels, int64_t plane, int V, bool by_pixels) {
  Division d{pieces_of(plane), 1, by_pixels ? plane : channels, kPieceThreads};
  const int64_t pixels = plane < kPieceElements ? plane : kPieceElements;
  // A vector may begin and end within a plane: at most 2 V - 2 elements are taken one by one.
  while (!by_pixels && d.across > 16 && (d.across / 2 - 1) * V >= pixels) d.across /= 2;
  const int64_t elements = channels * pixels;
  if (batch * elements == 0) return d;
  const int64_t whole = by_pixels ? pixels : channels;
  const int64_t most = by_pixels ? pixels : divide_up(channels, kFewChannels);
  const int64_t wanted = divide_up(kWantedBlocks, batch * d.pieces);
  const int64_t few = divide_up(elements, kFewElements), many = divide_up(elements, kManyElements);
  int64_t parts = wanted < few ? wanted : few;
  if (parts < many) parts = many;
  if (parts > most) parts = most;
  if (parts > 65535) parts = 65535;
  d.each = divide_up(whole, parts);
  d.parts = divide_up(whole, d.each);
  return d;
}

// The channels of this thread in its part: first, first + step, ... before last.
struct Channels {
  int64_t first, last;
  int step;

  __device__ __forceinline__ Channels(const Division& d, int64_t all) {
    const int64_t begin = blockIdx.y * d.each, end = begin + d.each;
    first = begin + int(threadIdx.x) / d.across;
    last = end < all ? end : all;
    step = kPieceThreads / d.across;
  }
};

// The position of a thread in its piece, V elements at a time. V > 1 requires contiguous planes;
// with V = 1 each operand has its own strides.
template <int V>
struct Position {
  int64_t i, last;
  int64_t row, column, row_step, column_step, width;
  int step;

  __device__ __forceinline__ Position(const Division& d, int64_t piece, int64_t plane,
                                      int64_t width)
      : width(width), step(d.across) {
    const int64_t end = (piece + 1) * kPieceElements;
    i = piece * kPieceElements + int(threadIdx.x) % d.across * V;
    last = end < plane ? end : plane;
    if (V == 1) {
      row = quotient(i, width), column = i - row * width;
      row_step = width <= step ? step / int(width) : 0;
      column_step = step - row_step * width;
    }
  }
  __device__ __forceinline__ bool inside() const { return i < last; }
  __device__ __forceinline__ void next() {
    i += step * V;
    if (V == 1) {
      row += row_step, column += column_step;
      if (column >= width) column -= width, ++row;
    }
  }
  template <class T>
  __device__ __forceinline__ Pack<T, V> load(const Planes& planes, int64_t b, int64_t c) const {
    const T* from = static_cast<const T*>(planes.data) + b * planes.batch + c * planes.channel;
    const int64_t at = V == 1 ? row * planes.row + column * planes.column : i;
    return *reinterpret_cast<const Pack<T, V>*>(from + at);
  }
};

// True if an operand can be loaded V elements at a time.
template <class T, int V>
bool packs(const Planes& planes, int64_t width) {
  return planes.row == width && planes.column == 1 && planes.batch % V == 0 &&
         planes.channel % V == 0 && aligned(planes.data, V * sizeof(T));
}

// Strides of a result (B, C, H, W), contiguous or channels_last.
struct Layout {
  int64_t batch, channel, pixel;

  template <class P>
  __host__ __device__ explicit Layout(const P& p)
      : batch(p.channels * p.height * p.width),
        channel(p.channels_last ? 1 : p.height * p.width),
        pixel(p.channels_last ? p.channels : 1) {}
  __device__ __forceinline__ int64_t at(int64_t b, int64_t c, int64_t i) const {
    return b * batch + c * channel + i * pixel;
  }
};

// True, in every thread of the block, if all other blocks of the grid have called this before: what
// thread 0 of each wrote before the call can be read. Called once; `counter` is 0 before and after
// the launch.
__device__ __forceinline__ bool is_last_block(uint32_t* counter) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();  // publishes what this thread wrote
    last = atomicAdd(counter, 1u) + 1 == gridDim.x * gridDim.y;
    __threadfence();  // and what the other blocks wrote is seen from here on
  }
  __syncthreads();
  if (last && threadIdx.x == 0) *counter = 0;
  return last;
}

// The sum over a block of up to 1024 threads, in a fixed order; the result is valid in thread 0.
// A call that a launch executes once has its own number from 1 on, and its own memory.
template <int once = 0>
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[32];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kFullWarp, x, offset);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (once == 0) __syncthreads();  // an earlier sum may still be in use
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
