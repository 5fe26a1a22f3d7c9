// Polygons and boxes: one block per tile of a sample. Each thread processes one edge at a time:
// where the edge crosses a row of the tile, it adds the change of the winding number to a table of
// the tile's pixels in shared memory. Prefix sums along the rows of the table give the winding
// numbers. All arithmetic is in integers, so that the order of the additions does not matter. Mask,
// area and, if requested, the filled image are computed in one pass.
#include "../geometry.h"
#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kPixels = 8;  // adjacent pixels per lane
constexpr int kRows = 16, kColumns = 32 * kPixels;

struct Tile {
  int64_t sample, left;
  int32_t top, bottom;
};

__device__ __forceinline__ void add_polygons(const Shapes& p, const Tile& tile,
                                             int32_t (*turns)[kColumns]) {
  const int64_t* offsets = p.contour_offsets;
  const Range contours = safe_range(p.sample_offsets, tile.sample, p.contour_count);
  const int64_t end = clamp(offsets[contours.last], 0, p.vertex_count);
  for (int64_t v = clamp(offsets[contours.first], 0, p.vertex_count) + threadIdx.x; v < end;
       v += kThreads) {
    int64_t contour = contours.first;  // the last that starts at or before v
    for (int64_t after = contours.last; after - contour > 1;) {
      const int64_t middle = contour + (after - contour) / 2;
      (offsets[middle] <= v ? contour : after) = middle;
    }
    const Range range = safe_range(offsets, contour, p.vertex_count);
    if (v < range.first || v >= range.last) continue;  // the offsets are not in order
    const int64_t next = v + 1 < range.last ? v + 1 : range.first;
    const Edge edge = make_edge(p.vertices + 2 * v, p.vertices + 2 * next, p.height);
    const int32_t first = edge.first > tile.top ? edge.first : tile.top;
    const int32_t last = edge.last < tile.bottom ? edge.last : tile.bottom;
    if (edge.direction == 0 || first >= last) continue;
    EdgeWalk walk(edge, first);
    for (int32_t row = first; row < last; ++row, walk.next_row()) {
      const int64_t column = walk.quotient - tile.left;
      if (column < kColumns) {
        atomicAdd(&turns[row - tile.top][column > 0 ? column : 0], edge.direction);
      }
    }
  }
}

// The winding number of a pixel is the number of boxes that cover it.
__device__ __forceinline__ void add_boxes(const Shapes& p, const Tile& tile,
                                          int32_t (*turns)[kColumns]) {
  const Range boxes = safe_range(p.sample_offsets, tile.sample, p.vertex_count);
  for (int64_t k = boxes.first + threadIdx.x; k < boxes.last; k += kThreads) {
    const int32_t* box = p.vertices + 4 * k;
    const int64_t begin = clamp(first_pixel(box[0], p.width) - tile.left, 0, kColumns);
    const int64_t end = clamp(first_pixel(box[2], p.width) - tile.left, 0, kColumns);
    if (begin >= end) continue;
    const int64_t first = clamp(first_pixel(box[1], p.height), tile.top, tile.bottom);
    const int64_t last = clamp(first_pixel(box[3], p.height), tile.top, tile.bottom);
    for (int64_t row = first; row < last; ++row) {
      atomicAdd(&turns[row - tile.top][begin], 1);
      if (end < kColumns) atomicAdd(&turns[row - tile.top][end], -1);
    }
  }
}

// The pixels of a lane that are inside, from a row of the table; bit j: column kPixels * lane + j.
__device__ __forceinline__ unsigned inside_of(const int32_t* turns, bool even_odd, int lane) {
  using Vector = Pack<int32_t, 4>;
  int32_t winding[kPixels], sum = 0;
#pragma unroll
  for (int j = 0; j < kPixels; j += 4) {
    // Vector loads: single elements of the lanes would fall into only four banks.
    const Vector four = *reinterpret_cast<const Vector*>(turns + kPixels * lane + j);
#pragma unroll
    for (int v = 0; v < 4; ++v) winding[j + v] = sum += four.v[v];
  }
  int32_t before = sum;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int32_t left = __shfl_up_sync(kFullWarp, before, offset);
    if (lane >= offset) before += left;
  }
  before -= sum;
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const int32_t number = before + winding[j];
    bits |= unsigned(even_odd ? number % 2 != 0 : number != 0) << j;
  }
  return bits;
}

template <class T, bool boxes, bool fill>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    draw(Shapes p, int64_t down, int64_t across) {
  alignas(16) __shared__ int32_t turns[kRows][kColumns];
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  for (int64_t n = blockIdx.x; n < p.batch * down * across; n += gridDim.x) {
    Tile tile;
    const int64_t strip = quotient(n, across);
    tile.left = (n - strip * across) * kColumns;
    tile.sample = quotient(strip, down);
    const int64_t top = (strip - tile.sample * down) * kRows;
    tile.top = int32_t(top);
    tile.bottom = int32_t(top + kRows < p.height ? top + kRows : p.height);

    for (int i = int(threadIdx.x); i < kRows * kColumns; i += kThreads) {
      turns[i / kColumns][i % kColumns] = 0;
    }
    __syncthreads();
    boxes ? add_boxes(p, tile, turns) : add_polygons(p, tile, turns);
    __syncthreads();

    const int64_t columns = p.width - tile.left;  // up to the right border
    int32_t area = 0;
    for (int64_t row = tile.top + warp; row < tile.bottom; row += kWarps) {  // may exceed 2^31
      const unsigned bits = inside_of(turns[row - tile.top], p.even_odd && !boxes, lane);
      uint8_t* mask = p.mask + (tile.sample * p.height + row) * p.width + tile.left;
      unsigned mine = 0;  // bit j is column 32 j + lane: coalesced writes
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const unsigned other = __shfl_sync(kFullWarp, bits, (32 * j + lane) / kPixels);
        const unsigned inside = other >> (lane % kPixels) & 1;
        if (32 * j + lane >= columns) continue;
        mask[32 * j + lane] = uint8_t(inside);
        area += int32_t(inside);
        mine |= inside << j;
      }
      for (int64_t c = 0; fill && c < p.channels; ++c) {
        const T value = static_cast<const T*>(p.value)[c];
        const T* from = static_cast<const T*>(p.image.data) + tile.sample * p.image.batch +
                        c * p.image.channel + row * p.image.row + tile.left;
        T* to = static_cast<T*>(p.output) +
                ((tile.sample * p.channels + c) * p.height + row) * p.width + tile.left;
#pragma unroll
        for (int j = 0; j < kPixels; ++j) {
          const int x = 32 * j + lane;
          if (x < columns) to[x] = (mine >> j & 1) != 0 ? value : from[x];
        }
      }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      area += __shfl_down_sync(kFullWarp, area, offset);
    }
    if (lane == 0 && area != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(p.area + tile.sample),
                static_cast<unsigned long long>(area));
    }
    __syncthreads();  // the table is reused
  }
}

template <class T, bool fill>
void start(const Shapes& p, void* stream) {
  const int64_t down = divide_up(p.height, kRows), across = divide_up(p.width, kColumns);
  const dim3 grid = grid_of(p.batch * down * across);
  if (p.boxes) {
    CEK_LAUNCH((draw<T, true, fill>), grid, kThreads, stream, p, down, across);
  } else {
    CEK_LAUNCH((draw<T, false, fill>), grid, kThreads, stream, p, down, across);
  }
}

}  // namespace

size_t workspace_bytes(const Shapes&) { return 0; }

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
