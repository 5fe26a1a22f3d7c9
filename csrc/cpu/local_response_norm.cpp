// Local response normalisation and its gradient, in one pass over the operands. The channels of a
// block of positions are gathered into a dense array, in which the neighbours of an element lie
// `step` elements apart: the positions of the block for planes, 1 for channels_last.
#include <cmath>

#include "simd.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

constexpr int64_t kBlock = 64;  // positions

// base^-beta, and sums over windows of `size` elements that lie `step` apart.
template <class A>
void powers(const A* base, A beta, int64_t n, A* result) {
  if (beta == A(0.75)) {
    for (int64_t i = 0; i < n; ++i) {
      const A root = 1 / std::sqrt(base[i]);
      result[i] = root * std::sqrt(root);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) result[i] = std::pow(base[i], -beta);
  }
}

template <class A>
void window_sums(const A* from, int64_t size, int64_t step, int64_t n, A* result) {
  for (int64_t i = 0; i < n; ++i) result[i] = from[i];
  for (int64_t k = 1; k < size; ++k) {
    const A* shifted = from + k * step;
    for (int64_t i = 0; i < n; ++i) result[i] += shifted[i];
  }
}

// The operands of one block, widened. `terms` has margins of zeros for the windows.
template <class A>
struct Work {
  Scratch<A> x, grad, factor, sums, terms;
  Work(int64_t n, int64_t margins) : x(n), grad(n), factor(n), sums(n), terms(n + margins) {}
};

// Replaces w.x by the result.
template <class A>
void normalize(const LocalResponseNorm& p, Work<A>& w, int64_t step) {
  const int64_t n = p.channels * step, before = p.size / 2, after = p.size - 1 - before;
  const A scale = A(p.alpha / double(p.size)), k = A(p.k);
  A* terms = w.terms;
  const int64_t total = n + (p.size - 1) * step;
  for (int64_t i = 0; i < before * step; ++i) terms[i] = 0;
  for (int64_t i = 0; i < n; ++i) terms[before * step + i] = w.x[i] * w.x[i];
  for (int64_t i = before * step + n; i < total; ++i) terms[i] = 0;
  window_sums<A>(terms, p.size, step, n, w.sums);
  for (int64_t i = 0; i < n; ++i) w.sums[i] = k + scale * w.sums[i];
  powers<A>(w.sums, A(p.beta), n, w.factor);
  if (p.grad_output == nullptr) {
    for (int64_t i = 0; i < n; ++i) w.x[i] *= w.factor[i];
    return;
  }
  for (int64_t i = 0; i < after * step; ++i) terms[i] = 0;
  for (int64_t i = 0; i < n; ++i) {
    terms[after * step + i] = w.grad[i] * w.x[i] * w.factor[i] / w.sums[i];
  }
  for (int64_t i = after * step + n; i < total; ++i) terms[i] = 0;
  window_sums<A>(terms, p.size, step, n, w.sums);
  const A back = A(2 * p.alpha * p.beta / double(p.size));
  for (int64_t i = 0; i < n; ++i) {
    w.x[i] = w.grad[i] * w.factor[i] - back * w.x[i] * w.sums[i];
  }
}

template <class T>
void gather(const void* from, int64_t first, int64_t rows, int64_t stride, int64_t length,
            acc_t<T>* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = static_cast<const T*>(from) + first + r * stride;
    for (int64_t i = 0; i < length; ++i) to[r * length + i] = widen(row[i]);
  }
}

template <class T>
void block(const LocalResponseNorm& p, Work<acc_t<T>>& w, int64_t first, int64_t rows,
           int64_t stride, int64_t length, int64_t step) {
  gather<T>(p.input, first, rows, stride, length, w.x);
  if (p.grad_output != nullptr) gather<T>(p.grad_output, first, rows, stride, length, w.grad);
  normalize(p, w, step);
  for (int64_t r = 0; r < rows; ++r) {
    T* row = static_cast<T*>(p.output) + first + r * stride;
    for (int64_t i = 0; i < length; ++i) row[i] = narrow<T>(w.x[r * length + i]);
  }
}

template <class T>
void all(const LocalResponseNorm& p) {
  using A = acc_t<T>;
  if (p.channels_last) {
    parallel(p.batch * p.positions, kBlock, [&](int64_t begin, int64_t end) {
      Work<A> w(p.channels, p.size - 1);
      for (int64_t i = begin; i < end; ++i) {
        block<T>(p, w, i * p.channels, 1, 0, p.channels, 1);
      }
    });
    return;
  }
  const int64_t width = smaller(kBlock, p.positions), pieces = divide_up(p.positions, width);
  parallel(p.batch * pieces, 1, [&](int64_t begin, int64_t end) {
    Work<A> w(p.channels * width, (p.size - 1) * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t from = task % pieces * width, length = smaller(width, p.positions - from);
      const int64_t first = task / pieces * p.channels * p.positions + from;
      block<T>(p, w, first, p.channels, p.positions, length, length);
    }
  });
}

}  // namespace

void run(const LocalResponseNorm& p) {
  switch (p.dtype) {
    case DType::f16: return all<Half>(p);
    case DType::bf16: return all<BFloat16>(p);
    case DType::f64: return all<double>(p);
    default: return all<float>(p);
  }
}

}  // namespace CEK_ISA
}  // namespace cpu
}  // namespace cekernels
