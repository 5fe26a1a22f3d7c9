// Channel-wise linear map. Per channel it is a small matrix product whose rows, one per sample, lie
// far apart in memory. Groups of neighbouring channels are processed together, so that whole cache
// lines are used and the weights of the group stay in cache during the loop over the batch.
#include "simd.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

constexpr int kVectors = 3;
constexpr int kRows = kVectorRegisters == 32 ? 8 : 4;
constexpr int64_t kChunk = 32;             // rows of a sample chunk
constexpr int64_t kDepth = 64;             // terms per partial sum
constexpr int64_t kGroupBytes = 48 << 10;  // weights of a group of channels
constexpr int64_t kSlice = 256;            // samples per task of the forward pass

template <class A>
CEK_INLINE int64_t padded(int64_t n) {
  return divide_up(n, Simd<A>::width) * Simd<A>::width;
}

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
template <class A, int M, int V>
inline void tile(const A* a, int64_t a_row, int64_t a_depth, const A* b, int64_t b_row,
                 int64_t depth, int64_t last, Bias<A> bias, bool accumulate, bool relu, A* out,
                 int64_t out_row) {
  using S = Simd<A>;
  const auto column = [last](int v) { return v < V - 1 ? v * S::width : last; };
  typename S::vector sum[M][V];
  CEK_UNROLL for (int v = 0; v < V; ++v) {
    CEK_UNROLL for (int m = 0; m < M; ++m) sum[m][v] = typename S::vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename S::vector row[V];
    CEK_UNROLL for (int v = 0; v < V; ++v) row[v] = S::load(b + k * b_row + column(v));
    CEK_UNROLL for (int m = 0; m < M; ++m) {
      const A x = a[m * a_row + k * a_depth];
      CEK_UNROLL for (int v = 0; v < V; ++v) sum[m][v] += x * row[v];
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

template <class A, int V>
inline void columns(int64_t rows, const A* a, int64_t a_row, int64_t a_depth, const A* b,
                    int64_t b_row, int64_t depth, int64_t last, Bias<A> bias, bool accumulate,
                    bool relu, A* out, int64_t out_row) {
  const auto take = [&](auto run, int64_t m) {
    const Bias<A> part{bias.of_columns, bias.of_rows ? bias.of_rows + m : nullptr};
    run(a + m * a_row, a_row, a_depth, b, b_row, depth, last, part, accumulate, relu,
        out + m * out_row, out_row);
  };
  int64_t m = 0;
  constexpr int M = V == 1 ? kRows + kRows / 2 : kRows;
  for (; m + M <= rows; m += M) take(tile<A, M, V>, m);
  for (; m + 4 <= rows; m += 4) take(tile<A, 4, V>, m);
  for (; m + 2 <= rows; m += 2) take(tile<A, 2, V>, m);
  if (m < rows) take(tile<A, 1, V>, m);
}

// out (rows, n) = a (rows, depth) b (depth, n) + bias. Whole vectors are read and written: where n
// is smaller than one vector, b, a bias per column and out must extend to a whole vector, and out
// is overwritten there.
template <class A>
void product(int64_t rows, int64_t n, int64_t depth, const A* a, int64_t a_row, int64_t a_depth,
             const A* b, int64_t b_row, Bias<A> bias, bool accumulate, bool relu, A* out,
             int64_t out_row) {
  constexpr int64_t width = Simd<A>::width;
  for (int64_t j = 0; j < n;) {
    const int64_t vectors = divide_up(n - j, width);
    // Four vectors are faster as 2 + 2 than as 3 + 1.
    const int64_t take = vectors == 4 ? 2 : smaller(vectors, kVectors);
    const int64_t last = larger(0, smaller(n - j, take * width) - width);
    const auto run = take == 3 ? columns<A, 3> : take == 2 ? columns<A, 2> : columns<A, 1>;
    const Bias<A> whole{bias.of_columns ? bias.of_columns + j : nullptr, bias.of_rows};
    int64_t k = 0;
    do {
      const int64_t next = smaller(k + kDepth, depth);
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

template <class T, class A>
inline void narrow_row(const A* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<T>(from[i]);
}

template <class A>
inline void zero(A* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
}

template <class T>
CEK_INLINE auto load_four(const T* from) {
  using S = Simd<acc_t<T>, 4>;
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    return S::load(from);
  } else {
    return typename S::vector{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])};
  }
}

// Transposes a block of 4 x 4.
template <class T, class A>
CEK_INLINE void transpose_four(const T* from, int64_t from_row, A* to, int64_t ld) {
  using S = Simd<A, 4>;
  const auto a = load_four(from), b = load_four(from + from_row);
  const auto c = load_four(from + 2 * from_row), d = load_four(from + 3 * from_row);
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

// Copies the rows of neighbouring channels of one sample next to each other.
template <class T, class A>
inline void gather(const T* from, int64_t channel, int64_t channels, int64_t n, A* to) {
  if (channel == n) return widen_row(from, channels * n, to);
  for (int64_t c = 0; c < channels; ++c) widen_row(from + c * channel, n, to + c * n);
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

template <class T>
void forward(const LinearForward& p) {
  using A = acc_t<T>;
  const bool lanes = samples_in_lanes<A>(p.batch, p.n_out, p.n_in);
  const int64_t ld = lanes ? padded<A>(kChunk) : padded<A>(p.n_out);
  const int64_t w_rows = lanes ? p.n_out : p.n_in, w_row = lanes ? p.n_in : ld;
  const int64_t matrix = w_rows * w_row, b_row = padded<A>(p.n_out);
  const int64_t group = group_size(matrix * sizeof(A), p.channels, 2 * thread_count());
  const int64_t groups = divide_up(p.channels, group);
  const int64_t slices = divide_up(p.batch, kSlice);
  const int64_t x_row = group * p.n_in, y_row = group * p.n_out + Simd<A>::width;
  const auto* input = static_cast<const T*>(p.input);
  const auto* weight = static_cast<const T*>(p.weight);
  const auto* bias = static_cast<const T*>(p.bias);
  auto* output = static_cast<T*>(p.output);

  parallel(groups * slices, 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> packed(group * matrix), biases(group * b_row);
    const Scratch<A> x(kChunk * x_row), y(kChunk * y_row);
    const Scratch<A> xt(lanes ? p.n_in * ld : 0), yt(lanes ? p.n_out * ld : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task / slices * group, count = smaller(group, p.channels - c0);
      const int64_t b0 = task % slices * kSlice, b1 = smaller(b0 + kSlice, p.batch);
      for (int64_t c = 0; c < count; ++c) {
        const T* from = weight + (c0 + c) * p.weight_channel;
        A* to = packed + c * matrix;
        if (!lanes) {
          transpose(from, p.weight_row, p.n_out, p.n_in, to, ld);
        } else {
          for (int64_t o = 0; o < p.n_out; ++o) {
            widen_row(from + o * p.weight_row, p.n_in, to + o * w_row);
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
          gather(input + (b + r) * p.input_batch + c0 * p.input_channel, p.input_channel, count,
                 p.n_in, x + r * x_row);
        }
        for (int64_t c = 0; c < count; ++c) {  // overwrites what the last one wrote too much
          const A* w = packed + c * matrix;
          const A* b_c = bias ? biases + c * b_row : nullptr;
          if (!lanes) {
            product<A>(rows, p.n_out, p.n_in, x + c * p.n_in, x_row, 1, w, w_row, {b_c, nullptr},
                       false, p.relu, y + c * p.n_out, y_row);
          } else {
            transpose<A, A>(x + c * p.n_in, x_row, rows, p.n_in, xt, ld);
            product<A>(p.n_out, rows, p.n_in, w, w_row, 1, xt, ld, {nullptr, b_c}, false, p.relu,
                       yt, ld);
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
          gather(grad_output + (b + r) * p.grad_batch + c0 * p.grad_channel, p.grad_channel, count,
                 p.n_out, to);
          for (int64_t c = 0; relu && c < count; ++c) {
            const T* y = relu + (b + r) * p.output_batch + (c0 + c) * p.output_channel;
            A* dy_c = to + c * p.n_out;
            for (int64_t o = 0; o < p.n_out; ++o) dy_c[o] = widen(y[o]) > 0 ? dy_c[o] : A(0);
          }
          for (int64_t i = 0; grad_bias && i < count * p.n_out; ++i) bias_sums[i] += to[i];
        }
        if (grad_input) {
          for (int64_t c = 0; c < count; ++c) {
            product<A>(rows, p.n_in, p.n_out, dy + c * p.n_out, dy_row, 1, packed + c * matrix, ld,
                       Bias<A>{}, false, false, dx + c * p.n_in, x_row);
          }
          for (int64_t r = 0; r < rows; ++r) {
            narrow_row(dx + r * x_row, count * p.n_in,
                       grad_input + ((b + r) * p.channels + c0) * p.n_in);
          }
        }
        if (grad_weight) {
          for (int64_t r = 0; r < rows; ++r) {
            gather(input + (b + r) * p.input_batch + c0 * p.input_channel, p.input_channel, count,
                   p.n_in, x + r * x_row);
          }
          for (int64_t c = 0; c < count; ++c) {
            product<A>(p.n_out, p.n_in, rows, dy + c * p.n_out, 1, dy_row, x + c * p.n_in, x_row,
                       Bias<A>{}, true, false, sums + c * matrix, ld);
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

}  // namespace CEK_ISA
}  // namespace cpu
}  // namespace cekernels
