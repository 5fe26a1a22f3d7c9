// Channel-wise linear map. For one channel it is a small matrix product whose rows, one a sample,
// lie far apart in memory; neighbouring channels are taken together so that whole cache lines are
// used, the weights of the group stay in cache while the batch streams by, and nothing is
// transposed or copied beyond them.
#include "simd.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

constexpr int kVectors = 3;
constexpr int kRows = kVectorRegisters == 32 ? 8 : 4;
constexpr int64_t kChunk = 32;         // rows of a sample chunk
constexpr int64_t kGroupBytes = 48 << 10;  // weights of a group of channels
constexpr int64_t kSlice = 256;        // samples of one task of the forward pass

template <class A>
CEK_INLINE int64_t padded(int64_t n) {
  return divide_up(n, Simd<A>::width) * Simd<A>::width;
}

// M rows by V vectors: out[m, :n] = init + sum_k a[m, k] b[k, :].
template <class A, int M, int V>
inline void tile(const A* a, int64_t a_row, int64_t a_depth, const A* b, int64_t b_row,
                 int64_t depth, const A* init, bool accumulate, bool relu, A* out,
                 int64_t out_row, int64_t n) {
  using S = Simd<A>;
  typename S::vector sum[M][V];
  for (int v = 0; v < V; ++v) {
    const typename S::vector start = init ? S::load(init + v * S::width) : typename S::vector{};
    for (int m = 0; m < M; ++m) {
      sum[m][v] = accumulate ? S::load(out + m * out_row + v * S::width) : start;
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename S::vector row[V];
    for (int v = 0; v < V; ++v) row[v] = S::load(b + k * b_row + v * S::width);
    for (int m = 0; m < M; ++m) {
      const typename S::vector x = S::all(a[m * a_row + k * a_depth]);
      for (int v = 0; v < V; ++v) sum[m][v] += x * row[v];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      typename S::vector y = sum[m][v];
      if (relu) y = y < 0 ? typename S::vector{} : y;  // NaN stays
      store_first<A, S::width>(out + m * out_row + v * S::width, y, n - v * S::width);
    }
  }
}

template <class A, int V>
inline void columns(int64_t rows, const A* a, int64_t a_row, int64_t a_depth, const A* b,
                    int64_t b_row, int64_t depth, const A* init, bool accumulate, bool relu,
                    A* out, int64_t out_row, int64_t n) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) {
    tile<A, kRows, V>(a + m * a_row, a_row, a_depth, b, b_row, depth, init, accumulate, relu,
                      out + m * out_row, out_row, n);
  }
  for (; m + 2 <= rows; m += 2) {
    tile<A, 2, V>(a + m * a_row, a_row, a_depth, b, b_row, depth, init, accumulate, relu,
                  out + m * out_row, out_row, n);
  }
  if (m < rows) {
    tile<A, 1, V>(a + m * a_row, a_row, a_depth, b, b_row, depth, init, accumulate, relu,
                  out + m * out_row, out_row, n);
  }
}

// out (rows, n) = init (n) + a (rows, depth) b (depth, n); b and init are padded to whole vectors,
// out too where it accumulates.
template <class A>
void product(int64_t rows, int64_t n, int64_t depth, const A* a, int64_t a_row, int64_t a_depth,
             const A* b, int64_t b_row, const A* init, bool accumulate, bool relu, A* out,
             int64_t out_row) {
  constexpr int64_t width = Simd<A>::width;
  for (int64_t j = 0; j < n;) {
    const A* start = init ? init + j : nullptr;
    const int64_t vectors = divide_up(n - j, width);
    // Four vectors are better cut 2 + 2 than 3 + 1.
    const int64_t take = vectors == 4 ? 2 : smaller(vectors, kVectors);
    const auto run = take == 3 ? columns<A, 3> : take == 2 ? columns<A, 2> : columns<A, 1>;
    run(rows, a, a_row, a_depth, b + j, b_row, depth, start, accumulate, relu, out + j, out_row,
        accumulate ? take * width : n - j);
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

inline int64_t group_size(int64_t weight_bytes, int64_t channels, int64_t wanted_tasks) {
  const int64_t by_cache = larger(1, smaller(8, kGroupBytes / larger(weight_bytes, 1)));
  return larger(1, smaller(by_cache, channels / wanted_tasks));
}

template <class T>
void forward(const LinearForward& p) {
  using A = acc_t<T>;
  constexpr bool direct = sizeof(T) == sizeof(A);
  const int64_t ld = padded<A>(p.n_out);
  const int64_t group = group_size(p.n_in * ld * sizeof(A), p.channels, 2 * thread_count());
  const int64_t groups = divide_up(p.channels, group);
  const int64_t slices = divide_up(p.batch, kSlice);
  const auto* input = static_cast<const T*>(p.input);
  const auto* weight = static_cast<const T*>(p.weight);
  const auto* bias = static_cast<const T*>(p.bias);
  auto* output = static_cast<T*>(p.output);

  parallel(groups * slices, 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> packed(group * (p.n_in + 1) * ld);
    const Scratch<A> rows(direct ? 0 : kChunk * p.n_in), results(direct ? 0 : kChunk * p.n_out);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task / slices * group, c1 = smaller(c0 + group, p.channels);
      const int64_t b0 = task % slices * kSlice, b1 = smaller(b0 + kSlice, p.batch);
      for (int64_t c = c0; c < c1; ++c) {  // transposed weights, then one row of bias
        A* to = packed + (c - c0) * (p.n_in + 1) * ld;
        const T* from = weight + c * p.weight_channel;
        for (int64_t i = 0; i < p.n_in; ++i) {
          for (int64_t o = 0; o < p.n_out; ++o) to[i * ld + o] = widen(from[o * p.weight_row + i]);
          for (int64_t o = p.n_out; o < ld; ++o) to[i * ld + o] = 0;
        }
        to += p.n_in * ld;
        for (int64_t o = 0; o < ld; ++o) {
          to[o] = bias && o < p.n_out ? A(widen(bias[c * p.bias_channel + o])) : A(0);
        }
      }
      for (int64_t b = b0; b < b1; b += kChunk) {
        const int64_t count = smaller(kChunk, b1 - b);
        for (int64_t c = c0; c < c1; ++c) {
          const A* w = packed + (c - c0) * (p.n_in + 1) * ld;
          const T* x = input + b * p.input_batch + c * p.input_channel;
          T* y = output + (b * p.channels + c) * p.n_out;
          if constexpr (direct) {
            product<A>(count, p.n_out, p.n_in, x, p.input_batch, 1, w, ld, w + p.n_in * ld, false,
                       p.relu, y, p.channels * p.n_out);
          } else {
            for (int64_t r = 0; r < count; ++r) {
              widen_row(x + r * p.input_batch, p.n_in, rows + r * p.n_in);
            }
            product<A>(count, p.n_out, p.n_in, rows, p.n_in, 1, w, ld, w + p.n_in * ld, false,
                       p.relu, results, p.n_out);
            for (int64_t r = 0; r < count; ++r) {
              narrow_row(results + r * p.n_out, p.n_out, y + r * p.channels * p.n_out);
            }
          }
        }
      }
    }
  });
}

// One pass over grad_output serves the three gradients. The sums over the batch run in the order of
// the samples whatever the number of threads.
template <class T>
void backward(const LinearBackward& p) {
  using A = acc_t<T>;
  constexpr bool direct = sizeof(T) == sizeof(A);
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

  parallel(divide_up(p.channels, group), 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> packed(grad_input ? group * matrix : 0);
    const Scratch<A> sums(grad_weight ? group * matrix : 0);
    const Scratch<A> bias_sums(group * p.n_out);
    const Scratch<A> dy(kChunk * p.n_out), x(grad_weight ? kChunk * ld : 0);
    const Scratch<A> dx(direct || !grad_input ? 0 : kChunk * p.n_in);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c0 = task * group, c1 = smaller(c0 + group, p.channels);
      for (int64_t c = c0; grad_input && c < c1; ++c) {
        A* to = packed + (c - c0) * matrix;
        for (int64_t o = 0; o < p.n_out; ++o) {
          widen_row(weight + c * p.weight_channel + o * p.weight_row, p.n_in, to + o * ld);
          for (int64_t i = p.n_in; i < ld; ++i) to[o * ld + i] = 0;
        }
      }
      for (int64_t i = 0; grad_weight && i < (c1 - c0) * matrix; ++i) sums[i] = 0;
      for (int64_t i = 0; i < (c1 - c0) * p.n_out; ++i) bias_sums[i] = 0;

      for (int64_t b = 0; b < p.batch; b += kChunk) {
        const int64_t count = smaller(kChunk, p.batch - b);
        for (int64_t c = c0; c < c1; ++c) {
          for (int64_t r = 0; r < count; ++r) {
            A* to = dy + r * p.n_out;
            const T* from = grad_output + (b + r) * p.grad_batch + c * p.grad_channel;
            if (relu) {
              const T* y = relu + (b + r) * p.output_batch + c * p.output_channel;
              for (int64_t o = 0; o < p.n_out; ++o) to[o] = widen(y[o]) > 0 ? widen(from[o]) : A(0);
            } else {
              widen_row(from, p.n_out, to);
            }
          }
          if (grad_bias) {
            A* to = bias_sums + (c - c0) * p.n_out;
            for (int64_t r = 0; r < count; ++r) {
              for (int64_t o = 0; o < p.n_out; ++o) to[o] += dy[r * p.n_out + o];
            }
          }
          if (grad_input) {
            T* to = grad_input + (b * p.channels + c) * p.n_in;
            const int64_t to_row = p.channels * p.n_in;
            const A* w = packed + (c - c0) * matrix;
            if constexpr (direct) {
              product<A>(count, p.n_in, p.n_out, dy, p.n_out, 1, w, ld, nullptr, false, false, to,
                         to_row);
            } else {
              product<A>(count, p.n_in, p.n_out, dy, p.n_out, 1, w, ld, nullptr, false, false, dx,
                         p.n_in);
              for (int64_t r = 0; r < count; ++r) {
                narrow_row(dx + r * p.n_in, p.n_in, to + r * to_row);
              }
            }
          }
          if (grad_weight) {
            for (int64_t r = 0; r < count; ++r) {
              A* to = x + r * ld;
              widen_row(input + (b + r) * p.input_batch + c * p.input_channel, p.n_in, to);
              for (int64_t i = p.n_in; i < ld; ++i) to[i] = 0;
            }
            product<A>(p.n_out, p.n_in, count, dy, 1, p.n_out, x, ld, nullptr, true, false,
                       sums + (c - c0) * matrix, ld);
          }
        }
      }
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t o = 0; grad_weight && o < p.n_out; ++o) {
          narrow_row(sums + (c - c0) * matrix + o * ld, p.n_in,
                     grad_weight + (c * p.n_out + o) * p.n_in);
        }
        if (grad_bias) {
          narrow_row(bias_sums + (c - c0) * p.n_out, p.n_out, grad_bias + c * p.n_out);
        }
      }
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
