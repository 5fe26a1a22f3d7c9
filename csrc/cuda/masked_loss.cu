// Masked L2 and L1 losses and their gradient. Prediction and target are loaded only where the mask
// is set, 16 bytes at a time where the alignment allows it. The sum is computed in two stages in an
// order that depends on the shape alone, so that every run gives the same bits.
#include <type_traits>

#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kThreads = kPieceThreads;

template <class A, class M, int V>
__device__ __forceinline__ bool weights_of(const Pack<M, V>& mask, A (&weights)[V]) {
  bool any = false;
  for (int j = 0; j < V; ++j) {
    weights[j] = mask_weight<A>(mask.v[j]);
    any |= weights[j] != 0;
  }
  return any;
}

// The factor that normalises the sum of the losses, given the sum of the weights.
template <class A>
__device__ __forceinline__ A scale_of(const MaskedLoss& p, double weight) {
  if (p.normalize == Normalize::mask) {
    const A divisor = A(weight) * A(p.mask_channels ? p.channels / p.mask_channels : 0);
    return divisor > 0 ? 1 / divisor : 0;
  }
  const int64_t elements = p.batch * p.channels * p.height * p.width;
  return p.normalize == Normalize::all ? 1 / A(elements > 0 ? elements : 1) : A(1);
}

// The factor of the gradient. In the one-pass kernel p.scale is set already if it depends on the
// area.
template <class A>
__device__ __forceinline__ A factor_of(const MaskedLoss& p, int64_t) {
  return p.normalize == Normalize::mask ? *static_cast<const A*>(p.scale) : scale_of<A>(p, 0);
}
template <class A>
__device__ __forceinline__ A factor_of(const MaskedLossBackward& p, int64_t b) {
  return static_cast<const A*>(p.grad_loss)[b * p.grad_loss_stride] *
         *static_cast<const A*>(p.scale);
}

// Computes the loss, the gradient, or both; P is MaskedLoss or MaskedLossBackward.
template <class P, bool with_grad, class T, class M, int V>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    elements(P p, int64_t pieces, double* sums, double* weight_sums) {
  using A = acc_t<T>;
  constexpr bool with_sum = std::is_same<P, MaskedLoss>::value;
  const int64_t plane = p.height * p.width;
  for (int64_t block = blockIdx.x; block < p.batch * pieces; block += gridDim.x) {
    const int64_t b = quotient(block, pieces);
    A factor = 0;
    if (with_grad) factor = factor_of<A>(p, b);
    A sum = 0, weight_sum = 0;
    for (Position<V> at(block - b * pieces, plane, p.width); at.inside(); at.next()) {
      A weights[V];
      bool any = false;
      for (int64_t c = 0; c < p.channels; ++c) {
        if (c == 0 || p.mask_channels != 1) {
          any = weights_of<A>(at.template load<M>(p.mask, b, c), weights);
          for (int j = 0; j < V; ++j) weight_sum += weights[j];
        }
        Pack<T, V> grad;
        for (int j = 0; j < V; ++j) grad.v[j] = narrow<T>(A(0));
        if (any) {
          const auto x = at.template load<T>(p.prediction, b, c);
          const auto y = at.template load<T>(p.target, b, c);
          for (int j = 0; j < V; ++j) {
            const A difference = A(widen(x.v[j])) - A(widen(y.v[j]));
            if (weights[j] == 0) continue;
            if (with_sum) sum += weights[j] * loss_term(p.power, difference);
            if (with_grad) {
              grad.v[j] = narrow<T>(A(weights[j] * factor * loss_slope(p.power, difference)));
            }
          }
        }
        if (with_grad) {
          T* to = static_cast<T*>(p.grad) + (b * p.channels + c) * plane + at.i;
          *reinterpret_cast<Pack<T, V>*>(to) = grad;
        }
      }
    }
    if (with_sum) {
      const double total = block_sum(double(sum)), weight = block_sum(double(weight_sum));
      if (threadIdx.x == 0) {
        sums[block] = total;
        weight_sums[block] = weight;
      }
    }
  }
}

// The sum of the areas; the result is valid in thread 0.
__device__ __forceinline__ double total_area(const MaskedLoss& p) {
  double sum = 0;
  for (int64_t b = threadIdx.x; b < p.batch; b += kThreads) {
    const int64_t i = b * p.area_stride;
    switch (p.area_dtype) {
      case DType::f32: sum += static_cast<const float*>(p.area)[i]; break;
      case DType::f64: sum += static_cast<const double*>(p.area)[i]; break;
      default: sum += double(static_cast<const int64_t*>(p.area)[i]);
    }
  }
  return block_sum(sum);
}

template <class A>
__global__ void __launch_bounds__(kThreads, kResidentBlocks) scale_by_area(MaskedLoss p) {
  const double area = total_area(p);
  if (threadIdx.x == 0) *static_cast<A*>(p.scale) = scale_of<A>(p, area);
}

template <class A>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    finish(MaskedLoss p, int64_t pieces, const double* sums, const double* weight_sums) {
  A* loss = static_cast<A*>(p.loss);
  double sum = 0, weight = 0;
  for (int64_t i = threadIdx.x; i < p.batch * pieces; i += kThreads) {
    sum += sums[i];
    weight += weight_sums[i];
  }
  if (p.normalize == Normalize::none) {
    for (int64_t b = threadIdx.x; b < p.batch; b += kThreads) {
      double sample = 0;
      for (int64_t i = b * pieces; i < (b + 1) * pieces; ++i) sample += sums[i];
      loss[b] = A(sample);
    }
  }
  sum = block_sum(sum), weight = block_sum(weight);
  if (p.area != nullptr) weight = total_area(p);
  if (threadIdx.x != 0) return;
  const A scale = scale_of<A>(p, weight);
  *static_cast<A*>(p.scale) = scale;
  if (p.normalize != Normalize::none) *loss = A(sum * scale);
}

template <class T, class M, int V>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    scale_gradient(ScaleGradient p, int64_t pieces) {
  using A = acc_t<T>;
  const int64_t plane = p.height * p.width;
  for (int64_t block = blockIdx.x; block < p.batch * pieces; block += gridDim.x) {
    const int64_t b = quotient(block, pieces);
    const A factor = static_cast<const A*>(p.grad_loss)[b * p.grad_loss_stride];
    if (factor == 1) continue;
    for (Position<V> at(block - b * pieces, plane, p.width); at.inside(); at.next()) {
      A weights[V];
      bool any = false;
      for (int64_t c = 0; c < p.channels; ++c) {
        if (c == 0 || p.mask_channels != 1) {
          any = weights_of<A>(at.template load<M>(p.mask, b, c), weights);
        }
        if (!any) continue;
        T* to = static_cast<T*>(p.grad) + (b * p.channels + c) * plane + at.i;
        auto grad = *reinterpret_cast<const Pack<T, V>*>(to);
        for (int j = 0; j < V; ++j) {
          if (weights[j] != 0) grad.v[j] = narrow<T>(A(A(widen(grad.v[j])) * factor));
        }
        *reinterpret_cast<Pack<T, V>*>(to) = grad;
      }
    }
  }
}

// True if V elements can be accessed at a time in all operands.
template <class T, class M, int V, class P>
bool packs_all(const P& p) {
  return p.height * p.width % V == 0 && packs<T, V>(p.prediction, p.width) &&
         packs<T, V>(p.target, p.width) && packs<M, V>(p.mask, p.width) &&
         aligned(p.grad, V * sizeof(T));
}

template <bool with_grad, class T, class M, class P>
void launch_elements(const P& p, int64_t pieces, double* sums, double* weight_sums, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const int64_t count = p.batch * pieces;
  if (count == 0) return;
  if (packs_all<T, M, V>(p)) {
    CEK_LAUNCH((elements<P, with_grad, T, M, V>), grid_of(count), kThreads, stream, p, pieces, sums,
               weight_sums);
  } else {
    CEK_LAUNCH((elements<P, with_grad, T, M, 1>), grid_of(count), kThreads, stream, p, pieces, sums,
               weight_sums);
  }
}

template <class T, class M>
void start(const MaskedLoss& p, void* workspace, void* stream) {
  const int64_t pieces = pieces_of(p.height * p.width);
  double* sums = static_cast<double*>(workspace);
  double* weight_sums = sums + p.batch * pieces;
  if (p.grad == nullptr) {
    launch_elements<false, T, M>(p, pieces, sums, weight_sums, stream);
  } else {
    if (p.normalize == Normalize::mask) CEK_LAUNCH(scale_by_area<acc_t<T>>, 1, kThreads, stream, p);
    launch_elements<true, T, M>(p, pieces, sums, weight_sums, stream);
  }
  CEK_LAUNCH(finish<acc_t<T>>, 1, kThreads, stream, p, pieces, sums, weight_sums);
}

template <class T, class M>
void start(const MaskedLossBackward& p, void*, void* stream) {
  launch_elements<true, T, M>(p, pieces_of(p.height * p.width), nullptr, nullptr, stream);
}

template <class T, class M>
void start(const ScaleGradient& p, void*, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const int64_t pieces = pieces_of(p.height * p.width), count = p.batch * pieces;
  if (count == 0) return;
  if (p.height * p.width % V == 0 && packs<M, V>(p.mask, p.width) && aligned(p.grad, 16)) {
    CEK_LAUNCH((scale_gradient<T, M, V>), grid_of(count), kThreads, stream, p, pieces);
  } else {
    CEK_LAUNCH((scale_gradient<T, M, 1>), grid_of(count), kThreads, stream, p, pieces);
  }
}

template <class T, class P>
void with_mask(const P& p, void* workspace, void* stream) {
  if (p.mask_dtype == DType::u8) {
    start<T, uint8_t>(p, workspace, stream);
  } else {
    start<T, acc_t<T>>(p, workspace, stream);
  }
}

template <class P>
const char* with_types(const P& p, void* workspace, void* stream) {
  switch (p.dtype) {
    case DType::f64: with_mask<double>(p, workspace, stream); break;
    case DType::bf16: with_mask<BFloat16>(p, workspace, stream); break;
    case DType::f16: with_mask<Half>(p, workspace, stream); break;
    default: with_mask<float>(p, workspace, stream);
  }
  return launch_error();
}

}  // namespace

size_t workspace_bytes(const MaskedLossBackward&) { return 0; }
size_t workspace_bytes(const ScaleGradient&) { return 0; }

size_t workspace_bytes(const MaskedLoss& p) {
  return size_t(2 * p.batch * pieces_of(p.height * p.width)) * sizeof(double);
}

const char* run(const MaskedLoss& p, void* workspace, void* stream) {
  return with_types(p, workspace, stream);
}

const char* run(const MaskedLossBackward& p, void* workspace, void* stream) {
  return with_types(p, workspace, stream);
}

const char* run(const ScaleGradient& p, void* workspace, void* stream) {
  return with_types(p, workspace, stream);
}

}  // namespace cuda
}  // namespace cekernels
