// Masked L2 and L1 losses and their gradient. Masked elements are usually contiguous: prediction
// and target are read only in blocks of 16 elements in which any mask element is set.
#include <type_traits>

#include "rows.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

constexpr int kBlock = 16;
constexpr int64_t kFlush = 512;  // elements per partial sum in the accumulation type

CEK_INLINE bool any_set(const uint8_t* mask) {
  uint64_t words[2];
  memcpy(words, mask, sizeof(words));
  return (words[0] | words[1]) != 0;
}
template <class M>
CEK_INLINE bool any_set(const M* mask) {
  bool any = false;
  for (int i = 0; i < kBlock; ++i) any |= widen(mask[i]) != 0;
  return any;
}

// kBlock elements in the accumulation type.
template <class A>
struct Block {
  using S = Simd<A>;
  static constexpr int parts = kBlock / S::width;
  typename S::vector v[parts];

  CEK_INLINE Block() = default;
  CEK_INLINE explicit Block(const A* from) {
    for (int i = 0; i < parts; ++i) v[i] = S::load(from + i * S::width);
  }
  template <class T>
  CEK_INLINE explicit Block(const T* from) {
    alignas(64) A wide[kBlock];
    for (int i = 0; i < kBlock; ++i) wide[i] = widen(from[i]);
    *this = Block(wide);
  }
  CEK_INLINE void store(A* to) const {
    for (int i = 0; i < parts; ++i) S::store(to + i * S::width, v[i]);
  }
  template <class T>
  CEK_INLINE void store(T* to) const {
    alignas(64) A wide[kBlock];
    store(wide);
    for (int i = 0; i < kBlock; ++i) to[i] = narrow<T>(wide[i]);
  }
};

template <class A, class M>
CEK_INLINE Block<A> block_weights(const M* mask) {
  alignas(64) A wide[kBlock];
  for (int i = 0; i < kBlock; ++i) wide[i] = mask_weight<A>(mask[i]);
  return Block<A>(wide);
}

// Compensated sum: its error does not grow with the number of terms.
struct Sum {
  double total = 0, lost = 0;
  CEK_INLINE void add(double x) {
    const double next = total + x;
    const bool larger_total = (total < 0 ? -total : total) >= (x < 0 ? -x : x);
    const double error = larger_total ? (total - next) + x : (x - next) + total;
    lost += error == error ? error : 0;  // preserves infinities
    total = next;
  }
  CEK_INLINE double value() const { return total + lost; }
};

template <class A>
CEK_INLINE void flush(Block<A>& block, Sum& sum) {
  double x = 0;
  for (int i = 0; i < Block<A>::parts; ++i) {
    for (int j = 0; j < Block<A>::S::width; ++j) x += block.v[i][j];
    block.v[i] = typename Block<A>::S::vector{};
  }
  sum.add(x);
}

template <int power, class A>
CEK_INLINE void add_block(const Block<A>& w, const Block<A>& p, const Block<A>& t, Block<A>& sum) {
  for (int i = 0; i < Block<A>::parts; ++i) {
    const auto difference = p.v[i] - t.v[i];
    const auto term = power == 2 ? difference * difference
                                 : (difference < 0 ? -difference : difference);
    sum.v[i] += w.v[i] != 0 ? w.v[i] * term : 0 * w.v[i];
  }
}

template <int power, class T, class M, class A>
inline void sum_row(const T* p, const T* t, const M* m, int64_t n, Sum& sum) {
  Block<A> lanes{};
  int64_t i = 0;
  for (int64_t stop = kFlush; i + kBlock <= n; stop += kFlush) {
    for (; i < stop && i + kBlock <= n; i += kBlock) {
      if (!any_set(m + i)) continue;
      add_block<power>(block_weights<A>(m + i), Block<A>(p + i), Block<A>(t + i), lanes);
    }
    flush(lanes, sum);
  }
  if (i < n) {
    T p_rest[kBlock] = {}, t_rest[kBlock] = {};
    M m_rest[kBlock] = {};
    for (int64_t j = i; j < n; ++j) {
      p_rest[j - i] = p[j], t_rest[j - i] = t[j], m_rest[j - i] = m[j];
    }
    add_block<power>(block_weights<A>(m_rest), Block<A>(p_rest), Block<A>(t_rest), lanes);
    flush(lanes, sum);
  }
}

template <class A, class M>
inline void sum_weights(const M* m, int64_t n, Sum& sum) {
  for (int64_t i = 0; i < n;) {
    const int64_t stop = smaller(i + kFlush, n);
    A lanes[kBlock] = {};
    for (; i + kBlock <= stop; i += kBlock) {
      for (int j = 0; j < kBlock; ++j) lanes[j] += mask_weight<A>(m[i + j]);
    }
    double x = 0;
    for (; i < stop; ++i) x += mask_weight<A>(m[i]);
    for (int j = 0; j < kBlock; ++j) x += lanes[j];
    sum.add(x);
  }
}

inline double sum_area(const MaskedLoss& p) {
  Sum sum;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t i = b * p.area_stride;
    switch (p.area_dtype) {
      case DType::f32: sum.add(static_cast<const float*>(p.area)[i]); break;
      case DType::f64: sum.add(static_cast<const double*>(p.area)[i]); break;
      default: sum.add(double(static_cast<const int64_t*>(p.area)[i]));
    }
  }
  return sum.value();
}

template <int power, class T, class M>
void forward(MaskedLoss p) {
  using A = acc_t<T>;
  const bool count = p.normalize == Normalize::mask && p.area == nullptr;
  const Rows rows(p.height, p.width, p.prediction, p.target, p.mask);
  const int64_t pieces = p.batch * rows.pieces;
  const Scratch<Sum> sums(pieces), weights(count ? pieces : 0);

  parallel(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / rows.pieces, first = task % rows.pieces * rows.piece;
      Sum sum, weight;
      for (int64_t r = first; r < smaller(first + rows.piece, rows.count); ++r) {
        const int64_t n = rows.length(r);
        for (int64_t c = 0; c < p.channels; ++c) {
          const int64_t mask_channel = p.mask_channels == 1 ? 0 : c;
          sum_row<power, T, M, A>(row_of<T>(p.prediction, b, c, r), row_of<T>(p.target, b, c, r),
                                  row_of<M>(p.mask, b, mask_channel, r), n, sum);
        }
        for (int64_t c = 0; count && c < p.mask_channels; ++c) {
          sum_weights<A>(row_of<M>(p.mask, b, c, r), n, weight);
        }
      }
      sums[task] = sum;
      if (count) weights[task] = weight;
    }
  });

  auto* loss = static_cast<A*>(p.loss);
  Sum total, weight;
  for (int64_t b = 0; b < p.batch; ++b) {
    Sum sample;
    for (int64_t i = b * rows.pieces; i < (b + 1) * rows.pieces; ++i) {
      sample.add(sums[i].value());
      if (count) weight.add(weights[i].value());
    }
    if (p.normalize == Normalize::none) loss[b] = A(sample.value());
    total.add(sample.value());
  }
  A scale = 1;
  if (p.normalize == Normalize::mask) {
    const A copies = A(p.mask_channels ? p.channels / p.mask_channels : 0);
    const A divisor = A(count ? weight.value() : sum_area(p)) * copies;
    scale = divisor > 0 ? 1 / divisor : 0;
  } else if (p.normalize == Normalize::all) {
    scale = 1 / A(larger(p.batch * p.channels * p.height * p.width, 1));
  }
  *static_cast<A*>(p.scale) = scale;
  if (p.normalize != Normalize::none) *loss = A(total.value() * scale);
}

template <int power, class A>
CEK_INLINE Block<A> slope_block(const Block<A>& w, const Block<A>& p, const Block<A>& t, A factor) {
  Block<A> grad;
  for (int i = 0; i < Block<A>::parts; ++i) {
    const auto difference = p.v[i] - t.v[i];
    const std::decay_t<decltype(difference)> zero{};
    // 0 for NaN, as in torch.sign.
    const auto slope = power == 2
                           ? 2 * difference
                           : (difference > 0 ? zero + 1 : (difference < 0 ? zero - 1 : zero));
    grad.v[i] = w.v[i] != 0 ? w.v[i] * factor * slope : zero;
  }
  return grad;
}

template <int power, class T, class M, class A>
inline void grad_row(const T* p, const T* t, const M* m, int64_t n, A factor, T* to) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    if (any_set(m + i)) {
      slope_block<power>(block_weights<A>(m + i), Block<A>(p + i), Block<A>(t + i), factor)
          .store(to + i);
    } else {
      memset(static_cast<void*>(to + i), 0, kBlock * sizeof(T));
    }
  }
  if (i < n) {
    T p_rest[kBlock] = {}, t_rest[kBlock] = {}, to_rest[kBlock];
    M m_rest[kBlock] = {};
    for (int64_t j = i; j < n; ++j) {
      p_rest[j - i] = p[j], t_rest[j - i] = t[j], m_rest[j - i] = m[j];
    }
    slope_block<power>(block_weights<A>(m_rest), Block<A>(p_rest), Block<A>(t_rest), factor)
        .store(to_rest);
    for (int64_t j = i; j < n; ++j) to[j] = to_rest[j - i];
  }
}

template <int power, class T, class M>
void backward(MaskedLossBackward p) {
  using A = acc_t<T>;
  const Rows rows(p.height, p.width, p.prediction, p.target, p.mask);
  const A scale = *static_cast<const A*>(p.scale);
  parallel(p.batch * rows.pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / rows.pieces, first = task % rows.pieces * rows.piece;
      const A factor = static_cast<const A*>(p.grad_loss)[b * p.grad_loss_stride] * scale;
      for (int64_t r = first; r < smaller(first + rows.piece, rows.count); ++r) {
        for (int64_t c = 0; c < p.channels; ++c) {
          const int64_t mask_channel = p.mask_channels == 1 ? 0 : c;
          grad_row<power, T, M, A>(
              row_of<T>(p.prediction, b, c, r), row_of<T>(p.target, b, c, r),
              row_of<M>(p.mask, b, mask_channel, r), rows.length(r), factor,
              static_cast<T*>(p.grad) + (b * p.channels + c) * rows.total + r * rows.width);
        }
      }
    }
  });
}

// Calls f with values of the C++ types of image and mask; masks are bytes or of the accumulation
// type.
template <class T, class F>
void with_mask_type(DType mask, const F& f) {
  mask == DType::u8 ? f(T{}, uint8_t{}) : f(T{}, acc_t<T>{});
}
template <class F>
void with_types(DType dtype, DType mask, const F& f) {
  switch (dtype) {
    case DType::f64: return with_mask_type<double>(mask, f);
    case DType::bf16: return with_mask_type<BFloat16>(mask, f);
    case DType::f16: return with_mask_type<Half>(mask, f);
    default: return with_mask_type<float>(mask, f);
  }
}

}  // namespace

void run(const MaskedLoss& p) {
  with_types(p.dtype, p.mask_dtype, [&](auto t, auto m) {
    p.power == 2 ? forward<2, decltype(t), decltype(m)>(p)
                 : forward<1, decltype(t), decltype(m)>(p);
  });
}

void run(const MaskedLossBackward& p) {
  with_types(p.dtype, p.mask_dtype, [&](auto t, auto m) {
    p.power == 2 ? backward<2, decltype(t), decltype(m)>(p)
                 : backward<1, decltype(t), decltype(m)>(p);
  });
}

}  // namespace CEK_ISA
}  // namespace cpu
}  // namespace cekernels
