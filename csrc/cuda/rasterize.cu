// Polygons and boxes: one warp a row of pixels. The lanes test 32 edges at a time against the row;
// for each that meets it, every lane updates the pixels that it owns. Integers throughout. Mask,
// area and, where asked for, the filled image come from the one pass.
#include "../geometry.h"
#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kPixels = 8;  // of one lane: a warp holds 256 columns

// The winding numbers of a row's columns [left, left + 256), lane l having every 32nd from left + l.
__device__ __forceinline__ void wind(const Shapes& p, int64_t sample, int32_t row, int32_t left,
                                     int lane, int32_t (&winding)[kPixels]) {
  const Range contours = safe_range(p.sample_offsets, sample, p.contour_count);
  for (int64_t k = contours.first; k < contours.last; ++k) {
    const Range range = safe_range(p.contour_offsets, k, p.vertex_count);
    for (int64_t start = range.first; start < range.last; start += 32) {
      const int64_t v = start + lane;
      int32_t column = 0, direction = 0;
      if (v < range.last) {
        const int64_t next = v + 1 < range.last ? v + 1 : range.first;
        const Edge edge = make_edge(p.vertices + 2 * v, p.vertices + 2 * next, p.height);
        if (edge.direction != 0 && row >= edge.first && row < edge.last) {
          direction = edge.direction;
          column = int32_t(clamp(edge.column(row), 0, p.width));
        }
      }
      unsigned meeting = __ballot_sync(kFullWarp, direction != 0);
      while (meeting != 0) {
        const int from = __ffs(int(meeting)) - 1;
        meeting &= meeting - 1;
        const int32_t at = __shfl_sync(kFullWarp, column, from);
        const int32_t turn = __shfl_sync(kFullWarp, direction, from);
#pragma unroll
        for (int j = 0; j < kPixels; ++j) winding[j] += left + lane + 32 * j >= at ? turn : 0;
      }
    }
  }
}

// The same for boxes: 1 where any box covers the pixel.
__device__ __forceinline__ void cover(const Shapes& p, int64_t sample, int32_t row, int32_t left,
                                      int lane, int32_t (&covered)[kPixels]) {
  const Range boxes = safe_range(p.sample_offsets, sample, p.vertex_count);
  for (int64_t start = boxes.first; start < boxes.last; start += 32) {
    int32_t x0 = 0, x1 = 0;
    if (start + lane < boxes.last) {
      const int32_t* box = p.vertices + 4 * (start + lane);
      if (row >= first_pixel(box[1], p.height) && row < first_pixel(box[3], p.height)) {
        x0 = first_pixel(box[0], p.width), x1 = first_pixel(box[2], p.width);
      }
    }
    unsigned meeting = __ballot_sync(kFullWarp, x0 < x1);
    while (meeting != 0) {
      const int from = __ffs(int(meeting)) - 1;
      meeting &= meeting - 1;
      const int32_t begin = __shfl_sync(kFullWarp, x0, from);
      const int32_t end = __shfl_sync(kFullWarp, x1, from);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const int32_t x = left + lane + 32 * j;
        covered[j] |= x >= begin && x < end ? 1 : 0;
      }
    }
  }
}

template <class T, bool boxes, bool fill>
__global__ void __launch_bounds__(32 * kWarps) draw(Shapes p) {
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int64_t rows = p.batch * p.height, warps = int64_t(gridDim.x) * kWarps;
  for (int64_t n = int64_t(blockIdx.x) * kWarps + warp; n < rows; n += warps) {
    const int64_t sample = n / p.height;
    const int32_t row = int32_t(n % p.height);
    int32_t count = 0;
    for (int64_t left = 0; left < p.width; left += 32 * kPixels) {
      int32_t state[kPixels] = {};
      if (boxes) {
        cover(p, sample, row, int32_t(left), lane, state);
      } else {
        wind(p, sample, row, int32_t(left), lane, state);
      }
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const int64_t x = left + lane + 32 * j;
        if (x >= p.width) continue;
        const bool inside = p.even_odd ? state[j] % 2 != 0 : state[j] != 0;
        count += inside;
        p.mask[n * p.width + x] = inside;
        if (fill) {
#pragma unroll 1
          for (int64_t c = 0; c < p.channels; ++c) {
            T* to = static_cast<T*>(p.output) +
                    ((sample * p.channels + c) * p.height + row) * p.width + x;
            const T* from = static_cast<const T*>(p.image.data) + sample * p.image.batch +
                            c * p.image.channel + row * p.image.row + x;
            *to = inside ? static_cast<const T*>(p.value)[c] : *from;
          }
        }
      }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      count += __shfl_down_sync(kFullWarp, count, offset);
    }
    if (lane == 0 && count != 0) {  // sums of integers: the same in any order
      atomicAdd(reinterpret_cast<unsigned long long*>(p.area + sample),
                static_cast<unsigned long long>(count));
    }
  }
}

template <class T, bool fill>
void start(const Shapes& p, void* stream) {
  const dim3 grid = grid_of(divide_up(p.batch * p.height, kWarps));
  if (p.boxes) {
    CEK_LAUNCH((draw<T, true, fill>), grid, 32 * kWarps, stream, p);
  } else {
    CEK_LAUNCH((draw<T, false, fill>), grid, 32 * kWarps, stream, p);
  }
}

}  // namespace

const char* run(const Shapes& p, void*, void* stream) {
  const cudaError_t error = cudaMemsetAsync(p.area, 0, size_t(p.batch) * sizeof(int64_t),
                                            static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (p.height * p.width == 0) return nullptr;
  switch (p.element_size) {
    case 1: start<uint8_t, true>(p, stream); break;
    case 2: start<uint16_t, true>(p, stream); break;
    case 4: start<uint32_t, true>(p, stream); break;
    case 8: start<uint64_t, true>(p, stream); break;
    default: start<uint8_t, false>(p, stream);
  }
  return launch_error();
}

}  // namespace cuda
}  // namespace cekernels
