// The exact geometry of rasterization: integers only, the same on the CPU and on the GPU.
// The rule is written out in cekernels/reference/rasterize.py.
#pragma once

#include "numerics.h"

namespace cekernels {
namespace {

constexpr int64_t kSubpixels = 256;
constexpr int64_t kHalfPixel = kSubpixels / 2;
constexpr int64_t kCoordinateLimit = int64_t(1) << 28;

CEK_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

template <class Int>
CEK_INLINE Int floor_divide(Int a, Int b) {  // b > 0
  const Int quotient = a / b;
  return quotient - (quotient * b > a ? 1 : 0);
}

// The first column (or row) whose centre is at or beyond fixed-point x, within [0, size].
CEK_INLINE int32_t first_pixel(int64_t x, int64_t size) {
  x = clamp(x, -kCoordinateLimit, kCoordinateLimit);
  return int32_t(clamp(-floor_divide(kHalfPixel - x, kSubpixels), 0, size));
}

// An edge against the rows of centres that it meets: rows [first, last), direction 0 for none.
struct Edge {
  int32_t first, last, direction;
  int64_t x0, y0, dx, rise;

  // Over kSubpixels * rise, rounded down: the first column at or to the right of the edge.
  CEK_INLINE int64_t numerator(int32_t row) const {
    const int64_t y = row * kSubpixels + kHalfPixel;
    return (x0 - kHalfPixel) * rise + (y - y0) * dx + kSubpixels * rise - 1;
  }
};

CEK_INLINE Edge make_edge(const int32_t* from, const int32_t* to, int64_t height) {
  int64_t x0 = clamp(from[0], -kCoordinateLimit, kCoordinateLimit);
  int64_t y0 = clamp(from[1], -kCoordinateLimit, kCoordinateLimit);
  int64_t x1 = clamp(to[0], -kCoordinateLimit, kCoordinateLimit);
  int64_t y1 = clamp(to[1], -kCoordinateLimit, kCoordinateLimit);
  Edge edge;
  edge.direction = y1 > y0 ? 1 : -1;
  if (y1 < y0) {
    int64_t t = x0;
    x0 = x1, x1 = t;
    t = y0, y0 = y1, y1 = t;
  }
  edge.first = first_pixel(y0, height);
  edge.last = first_pixel(y1, height);
  if (edge.first >= edge.last) edge.direction = 0;
  edge.x0 = x0, edge.y0 = y0, edge.dx = x1 - x0, edge.rise = y1 - y0;
  return edge;
}

// The columns of an edge row by row, before clamping to the image, without a division a row.
struct EdgeWalk {
  int64_t quotient, remainder, step_quotient, step_remainder, divisor;

  CEK_INLINE EdgeWalk(const Edge& edge, int32_t row) {
    divisor = kSubpixels * edge.rise;
    const int64_t numerator = edge.numerator(row);
    quotient = floor_divide(numerator, divisor);
    remainder = numerator - quotient * divisor;
    step_quotient = floor_divide(int32_t(edge.dx), int32_t(edge.rise));  // within 2^29
    step_remainder = kSubpixels * edge.dx - step_quotient * divisor;
  }
  CEK_INLINE void next_row() {
    quotient += step_quotient;
    remainder += step_remainder;
    if (remainder >= divisor) {
      remainder -= divisor;
      ++quotient;
    }
  }
};

// The vertex range [first, last) of a contour or the contours of a sample, made safe whatever the
// offsets hold.
struct Range {
  int64_t first, last;
};
CEK_INLINE Range safe_range(const int64_t* offsets, int64_t index, int64_t count) {
  const int64_t first = clamp(offsets[index], 0, count);
  const int64_t last = clamp(offsets[index + 1], first, count);
  return {first, last};
}

}  // namespace
}  // namespace cekernels
