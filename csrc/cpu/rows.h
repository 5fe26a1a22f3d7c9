// Image batches as rows. Planes that are contiguous in all operands are divided into rows of
// kDenseRow elements, whatever their width; other planes keep their own rows.
#pragma once

#include "simd.h"

namespace cekernels {
namespace cpu {
namespace {

constexpr int64_t kDenseRow = 4096;
constexpr int64_t kPieceElements = 16384;  // elements of a plane per unit of work of a thread

struct Rows {
  int64_t count, width, total;  // plane: `count` rows of `width`; the last may be shorter
  int64_t pieces, piece;        // plane: `pieces` pieces of `piece` rows

  template <class... Operands>
  Rows(int64_t height, int64_t plane_width, Operands&... operands) {
    count = height, width = plane_width, total = height * plane_width;
    if ((... && (operands.row == plane_width))) {
      width = kDenseRow, count = divide_up(total, kDenseRow);
      ((operands.row = kDenseRow), ...);
    }
    piece = larger(1, kPieceElements / larger(width, 1));
    pieces = divide_up(count, piece);
  }

  int64_t length(int64_t row) const { return smaller(width, total - row * width); }
};

template <class T>
CEK_INLINE const T* row_of(const Planes& planes, int64_t b, int64_t c, int64_t row) {
  return static_cast<const T*>(planes.data) + b * planes.batch + c * planes.channel +
         row * planes.row;
}

}  // namespace
}  // namespace cpu
}  // namespace cekernels
