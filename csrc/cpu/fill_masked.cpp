// Images filled with a constant where a mask is not 0, as bits of elements of 1, 2, 4 or 8 bytes.
#include "rows.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

// `drop` is 1 for floating-point masks: it shifts out the sign bit, so that -0.0 counts as 0.
template <class T, class M>
inline void fill_row(const T* __restrict from, const M* __restrict mask, T value, int drop,
                     int64_t n, T* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = M(mask[i] << drop) != 0 ? value : from[i];
}

template <class T, class M>
void fill(FillMasked p) {
  const Rows rows(p.height, p.width, p.image, p.mask);
  parallel(p.batch * rows.pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / rows.pieces, first = task % rows.pieces * rows.piece;
      for (int64_t r = first; r < smaller(first + rows.piece, rows.count); ++r) {
        for (int64_t c = 0; c < p.channels; ++c) {
          fill_row(row_of<T>(p.image, b, c, r), row_of<M>(p.mask, b, c, r),
                   static_cast<const T*>(p.value)[c], p.mask_floating ? 1 : 0, rows.length(r),
                   static_cast<T*>(p.output) + (b * p.channels + c) * rows.total + r * rows.width);
        }
      }
    }
  });
}

template <class T>
void with_mask(const FillMasked& p) {
  switch (p.mask_element_size) {
    case 2: return fill<T, uint16_t>(p);
    case 4: return fill<T, uint32_t>(p);
    case 8: return fill<T, uint64_t>(p);
    default: return fill<T, uint8_t>(p);
  }
}

}  // namespace

void run(const FillMasked& p) {
  switch (p.element_size) {
    case 2: return with_mask<uint16_t>(p);
    case 4: return with_mask<uint32_t>(p);
    case 8: return with_mask<uint64_t>(p);
    default: return with_mask<uint8_t>(p);
  }
}

}  // namespace CEK_ISA
}  // namespace cpu
}  // namespace cekernels
