// Exact geometry of rasterization in integers, shared by the CPU and the CUDA kernels.
// The rule is specified in cekernels/reference/rasterize.py.
#pragma once

#include "numerics.h"

namespace cekernels {
namespace {

constexpr int32_t kSubpixelBits = 8;
constexpr int64_t kSubpixels = 1 << kSubpixelBits;
constexpr int64_t kHalfPixel = kSubpixels / 2;
constexpr int32_t kCoordinateLimit = 1 << 28;
constexpr int32_t kShortEdge = 1 << 15;  // products of two such lengths are at most 2^30

CEK_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

template <class Int>
CEK_INLINE Int floor_divide(Int a, Int b) {  // b > 0
  const Int quotient = a / b;
  return quotient - (quotient * b > a ? 1 : 0);
}

// The pixel that contains fixed-point x: division that rounds down.
template <class Int>
CEK_INLINE Int pixel_of(Int x) {
  return x >> kSubpixelBits;
}

CEK_INLINE int32_t clamp_coordinate(int32_t x) {
  return x < -kCoordinateLimit ? -kCoordinateLimit : x > kCoordinateLimit ? kCoordinateLimit : x;
}

// The first column (or row) whose centre is at or beyond fixed-point x, within [0, size].
CEK_INLINE int32_t first_pixel(int32_t x, int64_t size) {
  return int32_t(clamp(pixel_of(clamp_coordinate(x) + int32_t(kHalfPixel) - 1), 0, size));
}

// An edge, from its upper to its lower end, and the rows [first, last) whose centres it crosses.
// direction: 1 for an edge that runs down, -1 for up, 0 if it crosses no row of centres.
struct Edge {
  int32_t first, last, direction;
  int32_t x0, y0, dx, rise;

  // True if EdgeWalk<int32_t> does not overflow.
  CEK_INLINE bool is_short() const {
    return rise <= kShortEdge && dx <= kShortEdge && -dx <= kShortEdge;
  }
};

CEK_INLINE Edge make_edge(const int32_t* from, const int32_t* to, int64_t height) {
  const bool down = to[1] > from[1];
  const int32_t* upper = down ? from : to;
  const int32_t* lower = down ? to : from;
  Edge edge;
  edge.x0 = clamp_coordinate(upper[0]), edge.y0 = clamp_coordinate(upper[1]);
  edge.dx = clamp_coordinate(lower[0]) - edge.x0;
  edge.rise = clamp_coordinate(lower[1]) - edge.y0;
  edge.first = first_pixel(edge.y0, height);
  edge.last = first_pixel(edge.y0 + edge.rise, height);
  edge.direction = edge.first == edge.last ? 0 : down ? 1 : -1;
  return edge;
}

// For each row, the first column at or to the right of the edge, not yet clamped to the image.
// Incremental, with no division per row.
template <class Int = int64_t>
struct EdgeWalk {
  Int quotient, remainder, step_quotient, step_remainder, divisor;

  CEK_INLINE EdgeWalk(const Edge& edge, int32_t row) {
    const Int dx = edge.dx, rise = edge.rise;
    divisor = Int(kSubpixels) * rise;
    // First in whole subpixels, rounded down, which requires a division by the rise only.
    const Int across = (row * Int(kSubpixels) + Int(kHalfPixel) - edge.y0) * dx - 1;
    const Int whole = floor_divide(across, rise);
    const Int x = edge.x0 + Int(kHalfPixel) + whole;
    quotient = pixel_of(x);
    remainder = (x - quotient * Int(kSubpixels)) * rise + (across - whole * rise);
    step_quotient = floor_divide(edge.dx, edge.rise);
    step_remainder = Int(kSubpixels) * dx - step_quotient * divisor;
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

// The vertices of a contour or the contours of a sample as [first, last), clamped to [0, count] so
// that invalid offsets cause no out-of-bounds access.
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
