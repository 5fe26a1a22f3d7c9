// Channel-wise linear map. Per channel it is a small matrix product whose rows, one per sample, lie
// far apart in memory. Groups of neighbouring channels are processed together, so that whole cache
// lines are used and the weights of the group stay in cache during the loop over the batch.
#ifdef CEK_BF16_PRODUCTS
#include <immintrin.h>

#include <atomic>
#endif

#include "simd.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

// What the products are made of: sums of `Sum`, terms of `Term`, each of which holds `per_term`
// numbers.
template <class A>
struct Numbers {
  using Sum = A;
  using Term = A;
  static constexpr int64_t per_term = 1;
  using vector = typename Simd<A>::vector;
  static CEK_INLINE vector term(const A* from) { return Simd<A>::load(from); }
  static CEK_INLINE void add(vector& sum, A x, vector y) { sum += x * y; }
};

#ifdef CEK_BF16_PRODUCTS
constexpr int64_t kScanned = 1 << 16;  // numbers per task of the search for subnormal ones

// Two neighbouring bfloat16: the product of two pairs is the sum of two exact products. The
// processor takes subnormal numbers for 0.
struct Pairs {
  using Sum = float;
  using Term = uint32_t;
  static constexpr int64_t per_term = 2;
  using vector = Simd<float>::vector;
  static CEK_INLINE __m512i term(const Term* from) { return _mm512_loadu_si512(from); }
  static CEK_INLINE void add(vector& sum, Term x, __m512i y) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(int(x)), (__m512bh)y);
  }
};
#endif

template <class T>
struct ProductOf {
  using type = Numbers<acc_t<T>>;
};
#ifdef CEK_BF16_PRODUCTS
template <>
struct ProductOf<BFloat16> {
  using type = Pairs;
};

using ::cekernels::widen;  // the overload would hide the others
inline uint32_t widen(uint32_t pair) { return pair; }
#endif

constexpr int kVectors = 3;
constexpr int kRows = kVectorRegisters == 32 ? 8 : 4;
constexpr int64_t kChunk = 32;             // rows of a sample chunk
constexpr int64_t kDepth = 64;             // numbers per partial sum
constexpr int64_t kGroupBytes = 48 << 10;  // weights of a group of channels
constexpr int64_t kSlice = 256;            // samples per task of the forward pass

template <class A>
CEK_INLINE int64_t padded(int64_t n) {
  return divide_up(n, Simd<A>::width) * Simd<A>::width;
}

template <class P>
using SumOf = typename P::Sum;
template <class P>
using TermOf = typename P::Term;

// The number of columns accessed when n columns are processed in whole vectors.
template <class A>
CEK_INLINE int64_t touched(int64_t n) {
  return larger(n, Simd<A>::width);
}

// The bias of a product: one number per column, one per row, or none (both null).
template <class A>
struct Bias {
  const A* of_columns = nullptr;
  const A* of_rows = nullptr;
};

// M rows by V vectors: out[m, :] = sum_k a[m, k] b[k, :] + bias, added to out if `accumulate`. The
// bias is added last: rounding errors would accumulate on a large bias. The last vector starts at
// column `last` and may overlap the one before it; both then hold the same numbers there.
template <class P, int M, int V>
inline void tile(const TermOf<P>* a, int64_t a_row, int64_t a_depth, const TermOf<P>* b,
                 int64_t b_row, int64_t depth, int64_t last, Bias<SumOf<P>> bias, bool accumulate,
                 bool relu, SumOf<P>* out, int64_t out_row) {
  using A = SumOf<P>;
  using S = Simd<A>;
  const auto column = [last](int v) { return v < V - 1 ? v * S::width : last; };
  typename S::vector sum[M][V];
  CEK_UNROLL for (int v = 0; v < V; ++v) {
    CEK_UNROLL for (int m = 0; m < M; ++m) sum[m][v] = typename S::vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    decltype(P::term(b)) row[V];
    CEK_UNROLL for (int v = 0; v < V; ++v) row[v] = P::term(b + k * b_row + column(v));
    CEK_UNROLL for (int m = 0; m < M; ++m) {
      const TermOf<P> x = a[m * a_row + k * a_depth];
      CEK_UNROLL for (int v = 0; v < V; ++v) P::add(sum[m][v], x, row[v]);
    }
  }
  CEK_UNROLL for (int m = 0; m < M; ++m) {
    A* to = out + m * out_row;
    CEK_UNROLL for (int v = 0; v < V; ++v) {  // a row is read completely before it is written
      typename S::vector& y = sum[m][v];
      if (accumulate) y += S::load(to + column(v));
      if (bias.of_columns) y += S::load(bias.of_columns + column(v));
      if (bias.of_rows) y += bias.of_rows[m];
      if (relu) y = y < 0 ? typename S::vector{} : y;  // preserves NaN
    }
    CEK_UNROLL for (int v = 0; v < V; ++v) S::store(to + column(v), sum[m][v]);
  }
}

template <class P, int V>
inline void columns(int64_t rows, const TermOf<P>* a, int64_t a_row, int64_t a_depth,
                    const TermOf<P>* b, int64_t b_row, int64_t depth, int64_t last,
                    Bias<SumOf<P>> bias, bool accumulate, bool relu, SumOf<P>* out,
                    int64_t out_row) {
  using A = SumOf<P>;
  const auto take = [&](auto run, int64_t m) {
    const Bias<A> part{bias.of_columns, bias.of_rows ? bias.of_rows + m : nullptr};
    run(a + m * a_row, a_row, a_depth, b, b_row, depth, last, part, accumulate, relu,
        out + m * out_row, out_row);
  };
  int64_t m = 0;
  constexpr int M = V == 1 ? kRows + kRows / 2 : kRows;
  for (; m + M <= rows; m += M) take(tile<P, M, V>, m);
  for (; m + 4 <= rows; m += 4) take(tile<P, 4, V>, m);
  for (; m + 2 <= rows; m += 2) take(tile<P, 2, V>, m);
  if (m < rows) take(tile<P, 1, V>, m);
}

// out (rows, n) = a (rows, depth) b (depth, n) + bias, a and b in terms. Whole vectors are read and
// written: where n is smaller than one vector, b, a bias per column and out must extend to a whole
// vector, and out is overwritten there.
template <class P>
void product(int64_t rows, int64_t n, int64_t depth, const TermOf<P>* a, int64_t a_row,
             int64_t a_depth, const TermOf<P>* b, int64_t b_row, Bias<SumOf<P>> bias,
             bool accumulate, bool relu, SumOf<P>* out, int64_t out_row) {
  using A = SumOf<P>;
  constexpr int64_t width = Simd<A>::width;
  for (int64_t j = 0; j < n;) {
    const int64_t vectors = divide_up(n - j, width);
    // Four vectors are faster as 2 + 2 than as 3 + 1.
    const int64_t take = vectors == 4 ? 2 : smaller(vectors, kVectors);
    const int64_t last = larger(0, smaller(n - j, take * width) - width);
    const auto run = take == 3 ? columns<P, 3> : take == 2 ? columns<P, 2> : columns<P, 1>;
    const Bias<A> whole{bias.of_columns ? bias.of_columns + j : nullptr, bias.of_rows};
    int64_t k = 0;
    do {
      const int64_t next = smaller(k + kDepth / P::per_term, depth);
      run(rows, a + k * a_depth, a_row, a_depth, b + k * b_row + j, b_row, next - k, last,
          next == depth ? whole : Bias<A>{}, accumulate || k > 0, relu && next == depth, out + j,
          out_row);
      k = next;
    } while (k < depth);
    j += take * width;
  }
}

template <class T, class A>
inline void widen_row(const T* from, int64_t n, A* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}

// A row of numbers as the terms of products.
template <class T, class A>
inline void as_terms(const T* from, int64_t n, A* to) {
  widen_row(from, n, to);
}

#ifdef CEK_BF16_PRODUCTS
inline void as_terms(const BFloat16* from, int64_t n, uint32_t* to) {
  // Not one memcpy: rows are too short for a call.
  for (int64_t i = 0; i < n / 2; ++i) memcpy(to + i, from + 2 * i, sizeof(uint32_t));
  if (n % 2) to[n / 2] = from[n - 1].bits;
}
#endif

template <class T, class A>
inline void narrow_row(const A* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<T>(from[i]);
}

#ifdef CEK_BF16_PRODUCTS
inline void narrow_row(const float* from, int64_t n, BFloat16* to) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)rounded);
  }
  for (; i < n; ++i) to[i] = narrow<BFloat16>(from[i]);
}
#endif

template <class A>
inline void zero(A* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
}

template <class A, class T>
CEK_INLINE auto load_four(const T* from) {
  using S = Simd<A, 4>;
  if constexpr (sizeof(T) == sizeof(A)) {
    return S::load(from);
  } else {
    return typename S::vector{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])};
  }
}

// Transposes a block of 4 x 4.
template <class T, class A>
CEK_INLINE void transpose_four(const T* from, int64_t from_row, A* to, int64_t ld) {
  using S = Simd<A, 4>;
  const auto a = load_four<A>(from), b = load_four<A>(from + from_row);
  const auto c = load_four<A>(from + 2 * from_row), d = load_four<A>(from + 3 * from_row);
  const auto ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const auto ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const auto cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const auto cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  S::store(to, __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5));
  S::store(to + ld, __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7));
  S::store(to + 2 * ld, __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5));
  S::store(to + 3 * ld, __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7));
}

// to (columns, ld) = from (rows, columns) transposed; zeros where whole vectors extend beyond the
// rows. Sixteen rows at a time fill whole cache lines.
template <class T, class A>
inline void transpose(const T* from, int64_t from_row, int64_t rows, int64_t columns, A* to,
                      int64_t ld) {
  const int64_t whole_columns = columns / 4 * 4;
  int64_t r = 0;
  while (r + 4 <= rows) {
    const int64_t end = r + smaller(16, (rows - r) / 4 * 4);
    for (int64_t c = 0; c < whole_columns; c += 4) {
      for (int64_t k = r; k < end; k += 4) {
        transpose_four(from + k * from_row + c, from_row, to + c * ld + k, ld);
      }
    }
    for (int64_t c = whole_columns; c < columns; ++c) {
      for (int64_t k = r; k < end; ++k) to[c * ld + k] = widen(from[k * from_row + c]);
    }
    r = end;
  }
  for (; r < touched<A>(rows); ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      to[c * ld + r] = r < rows ? A(widen(from[r * from_row + c])) : A(0);
    }
  }
}

// The terms of each row as a column: `transpose` of the matrix of terms, for which `block` has room.
template <class T, class A>
inline void transpose_terms(const T* from, int64_t from_row, int64_t rows, int64_t n, A*, A* to,
                            int64_t ld) {
  transpose(from, from_row, rows, n, to, ld);
}

#ifdef CEK_BF16_PRODUCTS
inline void transpose_terms(const BFloat16* from, int64_t from_row, int64_t rows, int64_t n,
                            uint32_t* block, uint32_t* to, int64_t ld) {
  const int64_t terms = divide_up(n, 2);
  for (int64_t r = 0; r < rows; ++r) as_terms(from + r * from_row, n, block + r * terms);
  transpose<uint32_t, uint32_t>(block, terms, rows, terms, to, ld);
}
#endif

// Copies the rows of neighbouring channels of one sample next to each other, as terms.
template <class P, class T>
inline void gather(const T* from, int64_t channel, int64_t channels, int64_t n,
                   typename P::Term* to) {
  if (channel == n && n % P::per_term == 0) return as_terms(from, channels * n, to);
  const int64_t terms = divide_up(n, P::per_term);
  for (int64_t c = 0; c < channels; ++c) as_terms(from + c * channel, n, to + c * terms);
}

inline int64_t group_size(int64_t weight_bytes, int64_t channels, int64_t wanted_tasks) {
  const int64_t by_cache = larger(1, smaller(8, kGroupBytes / larger(weight_bytes, 1)));
  return larger(1, smaller(by_cache, channels / wanted_tasks));
}

// True if vector lanes hold samples, false if they hold output locations. Compares the number of
// vector products plus the elements transposed, each at two fifths of the time of a product.
template <class A>
bool samples_in_lanes(int64_t batch, int64_t n_out, int64_t n_in) {
  constexpr int64_t width = Simd<A>::width;
  const int64_t locations = n_in * batch * divide_up(n_out, width) + n_in * n_out * 2 / 5;
  const int64_t samples = n_in * n_out * divide_up(batch, width) + (n_in + n_out) * batch * 2 / 5;
  return samples < locations;
}

#ifdef CEK_BF16_PRODUCTS
inline bool any_subnormal(const BFloat16* row, int64_t n) {
  uint16_t found = 0;
  for (int64_t i = 0; i < n; ++i) found |= uint16_t((row[i].bits & 0x7fff) - 1) < 0x7f;
  return found != 0;
}

inline bool any_subnormal(const BFloat16* data, int64_t matrices, int64_t matrix, int64_t rows,
                          int64_t row, int64_t n) {
  std::atomic<bool> found(false);
  if (row == n) n *= rows, rows = 1;
  parallel(matrices, larger(1, kScanned / larger(1, rows * n)), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end && !found; ++m) {
      for (int64_t r = 0; r < rows; ++r) {
        if (any_subnormal(data + m * matrix + r * row, n)) found = true;
      }
    }
  });
  return found;
}
#endif

template <class T>
void forward(const LinearForward& p) {
  using P = typename ProductOf<T>::type;
  using A = typename P::Sum;
  using E = typename P::Term;
  const int64_t terms = divide_up(p.n_in, P::per_term);
  const bool lanes = samples_in_lanes<A>(p.batch, p.n_out, terms);
  const int64_t ld = lanes ? padded<A>(kChunk) : padded<A>(p.n_out);
  const int64_t w_rows = lanes ? p.n_out : terms, w_row = lanes ? terms : ld;
  const int64_t matrix = w_rows * w_row, b_row = padded<A>(p.n_out);
  const int64_t group = group_size(matrix * sizeof(E), p.channels, 2 * thread_count());
  const int64_t groups = divide_up(p.channels, group);
  const int64_t slices = divide_up(p.batch, kSlice);
  const int64_t x_row = group * terms, y_row = group * p.n_out + Simd<A>::width;
  const auto* input = static_cast<const T*>(p.input);
  const auto* weight = static_cast<const T*>(p.weight);
  const auto* bias = static_cast<const T*>(p.bias);
  auto* output = static_cast<T*>(p.output);

  parallel(groups * slices, 1, [&](int64_t begin, int64_t end) {
    const Scratch<E> packed(group * matrix), x(kChunk * x_row), xt(lanes ? terms * ld : 0);
    const Scratch<E> block(P::per_term > 1 ? p.n_out * terms : 0);
    const Scratch<A> biases(group * b_row), y(kChunk * y_row), yt(lanes ? p.n_out * ld : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task / slices * group, count = smaller(group, p.channels - c0);
      const int64_t b0 = task % slices * kSlice, b1 = smaller(b0 + kSlice, p.batch);
      for (int64_t c = 0; c < count; ++c) {
        const T* from = weight + (c0 + c) * p.weight_channel;
        E* to = packed + c * matrix;
        if (!lanes) {
          transpose_terms(from, p.weight_row, p.n_out, p.n_in, +block, to, ld);
        } else {
          for (int64_t o = 0; o < p.n_out; ++o) {
            as_terms(from + o * p.weight_row, p.n_in, to + o * w_row);
          }
        }
        if (bias) {
          A* b = biases + c * b_row;
          widen_row(bias + (c0 + c) * p.bias_channel, p.n_out, b);
          zero(b + p.n_out, touched<A>(p.n_out) - p.n_out);
        }
      }
      for (int64_t b = b0; b < b1; b += kChunk) {
        const int64_t rows = smaller(kChunk, b1 - b);
        for (int64_t r = 0; r < rows; ++r) {
          gather<P>(input + (b + r) * p.input_batch + c0 * p.input_channel, p.input_channel, count,
                    p.n_in, x + r * x_row);
        }
        for (int64_t c = 0; c < count; ++c) {  // overwrites what the last one wrote too much
          const E* w = packed + c * matrix;
          const A* b_c = bias ? biases + c * b_row : nullptr;
          if (!lanes) {
            product<P>(rows, p.n_out, terms, x + c * terms, x_row, 1, w, w_row, {b_c, nullptr},
                       false, p.relu, y + c * p.n_out, y_row);
          } else {
            transpose<E, E>(x + c * terms, x_row, rows, terms, xt, ld);
            product<P>(p.n_out, rows, terms, w, w_row, 1, xt, ld, {nullptr, b_c}, false, p.relu, yt,
                       ld);
            transpose<A, A>(yt, ld, p.n_out, rows, y + c * p.n_out, y_row);
          }
        }
        for (int64_t r = 0; r < rows; ++r) {
          narrow_row(y + r * y_row, count * p.n_out,
                     output + ((b + r) * p.channels + c0) * p.n_out);
        }
      }
    }
  });
}

// Computes the three gradients in one pass over grad_output. Sums over the batch are accumulated in
// the order of the samples, independent of the number of threads.
template <class T>
void backward(const LinearBackward& p) {
  using A = acc_t<T>;
  const int64_t ld = padded<A>(p.n_in);
  const int64_t group = group_size(2 * p.n_out * ld * sizeof(A), p.channels, 2 * thread_count());
  const auto* grad_output = static_cast<const T*>(p.grad_output);
  const auto* relu = static_cast<const T*>(p.output);
  const auto* input = static_cast<const T*>(p.input);
  const auto* weight = static_cast<const T*>(p.weight);
  auto* grad_input = static_cast<T*>(p.grad_input);
  auto* grad_weight = static_cast<T*>(p.grad_weight);
  auto* grad_bias = static_cast<T*>(p.grad_bias);
  const int64_t matrix = p.n_out * ld;
  const int64_t dy_row = group * p.n_out, x_row = group * p.n_in + Simd<A>::width;

  parallel(divide_up(p.channels, group), 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> packed(grad_input ? group * matrix : 0);
    const Scratch<A> sums(grad_weight ? group * matrix : 0), bias_sums(dy_row);
    const Scratch<A> dy(kChunk * dy_row);
    const Scratch<A> x(grad_weight ? kChunk * x_row : 0), dx(grad_input ? kChunk * x_row : 0);
    if (grad_weight) zero<A>(x, kChunk * x_row);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task * group, count = smaller(group, p.channels - c0);
      for (int64_t c = 0; grad_input && c < count; ++c) {
        for (int64_t o = 0; o < p.n_out; ++o) {
          A* to = packed + c * matrix + o * ld;
          widen_row(weight + (c0 + c) * p.weight_channel + o * p.weight_row, p.n_in, to);
          zero(to + p.n_in, touched<A>(p.n_in) - p.n_in);
        }
      }
      if (grad_weight) zero<A>(sums, count * matrix);
      zero<A>(bias_sums, count * p.n_out);

      for (int64_t b = 0; b < p.batch; b += kChunk) {
        const int64_t rows = smaller(kChunk, p.batch - b);
        for (int64_t r = 0; r < rows; ++r) {
          A* to = dy + r * dy_row;
          gather<Numbers<A>>(grad_output + (b + r) * p.grad_batch + c0 * p.grad_channel,
                             p.grad_channel, count, p.n_out, to);
          for (int64_t c = 0; relu && c < count; ++c) {
            const T* y = relu + (b + r) * p.output_batch + (c0 + c) * p.output_channel;
            A* dy_c = to + c * p.n_out;
            for (int64_t o = 0; o < p.n_out; ++o) dy_c[o] = widen(y[o]) > 0 ? dy_c[o] : A(0);
          }
          for (int64_t i = 0; grad_bias && i < count * p.n_out; ++i) bias_sums[i] += to[i];
        }
        if (grad_input) {
          for (int64_t c = 0; c < count; ++c) {
            product<Numbers<A>>(rows, p.n_in, p.n_out, dy + c * p.n_out, dy_row, 1,
                                packed + c * matrix, ld, Bias<A>{}, false, false, dx + c * p.n_in,
                                x_row);
          }
          for (int64_t r = 0; r < rows; ++r) {
            narrow_row(dx + r * x_row, count * p.n_in,
                       grad_input + ((b + r) * p.channels + c0) * p.n_in);
          }
        }
        if (grad_weight) {
          for (int64_t r = 0; r < rows; ++r) {
            gather<Numbers<A>>(input + (b + r) * p.input_batch + c0 * p.input_channel,
                               p.input_channel, count, p.n_in, x + r * x_row);
          }
          for (int64_t c = 0; c < count; ++c) {
            product<Numbers<A>>(p.n_out, p.n_in, rows, dy + c * p.n_out, 1, dy_row, x + c * p.n_in,
                                x_row, Bias<A>{}, true, false, sums + c * matrix, ld);
          }
        }
      }
      for (int64_t o = 0; grad_weight && o < count * p.n_out; ++o) {
        narrow_row(sums + o * ld, p.n_in, grad_weight + (c0 * p.n_out + o) * p.n_in);
      }
      if (grad_bias) narrow_row<T, A>(bias_sums, count * p.n_out, grad_bias + c0 * p.n_out);
    }
  });
}

}  // namespace

#ifdef CEK_BF16_PRODUCTS
// The only case for which this file is compiled with these instructions.
void run(const LinearForward& p) {
  const auto* input = static_cast<const BFloat16*>(p.input);
  const auto* weight = static_cast<const BFloat16*>(p.weight);
  if (any_subnormal(input, p.batch, p.input_batch, p.channels, p.input_channel, p.n_in) ||
      any_subnormal(weight, p.channels, p.weight_channel, p.n_out, p.weight_row, p.n_in)) {
    return avx512::run(p);
  }
  forward<BFloat16>(p);
}
#else
void run(const LinearForward& p) {
  switch (p.dtype) {
    case DType::f64: return forward<double>(p);
    case DType::bf16: return forward<BFloat16>(p);
    case DType::f16: return forward<Half>(p);
    default: return forward<float>(p);
  }
}

void run(const LinearBackward& p) {
  switch (p.dtype) {
    case DType::f64: return backward<double>(p);
    case DType::bf16: return backward<BFloat16>(p);
    case DType::f16: return backward<Half>(p);
    default: return backward<float>(p);
  }
}
#endif

}  // namespace CEK_ISA
}  // namespace cpu
}  // namespace cekernels
