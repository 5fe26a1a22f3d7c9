// Masked L2 and L1 losses and their gradient, in one launch. Prediction and target are loaded only
// where the mask is set, 16 bytes at a time where both lie densely in memory. Each block stores its
// sums, and the block that ends last adds them, in an order that depends on the shape alone, so that
// every run gives the same bits.
#include <type_traits>

#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kThreads = kPieceThreads;

template <class A>
struct Sums {
  A loss = 0, weight = 0;
};

// What the blocks of a launch share.
struct Partial {
  double *losses, *weights;  // a sum per part and piece; null weights: not needed
};

template <class A, class M, int V>
__device__ __forceinline__ bool weights_of(const Pack<M, V>& mask, A (&weights)[V]) {
  bool any = false;
  for (int j = 0; j < V; ++j) {
    weights[j] = mask_weight<A>(mask.v[j]);
    any |= weights[j] != 0;
  }
  return any;
}

// The sum of the areas, of `count` numbers; the result is valid in thread 0.
template <int once>
__device__ __forceinline__ double total_area(const MaskedLoss& p, int64_t count) {
  double sum = 0;
  for (int64_t b = threadIdx.x; b < count; b += kThreads) {
    const int64_t i = b * p.area_stride;
    switch (p.area_dtype) {
      case DType::f32: sum += static_cast<const float*>(p.area)[i]; break;
      case DType::f64: sum += static_cast<const double*>(p.area)[i]; break;
      default: sum += double(static_cast<const int64_t*>(p.area)[i]);
    }
  }
  return block_sum<once>(sum);
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

// The factor of the gradient of a loss whose weights are known: its scale, in every thread.
template <class A>
__device__ __forceinline__ A known_scale(const MaskedLoss& p, int64_t areas) {
  if (p.normalize != Normalize::mask) return scale_of<A>(p, 0);
  __shared__ A scale;
  const double area = total_area<1>(p, areas);
  if (threadIdx.x == 0) scale = scale_of<A>(p, area);
  __syncthreads();
  return scale;
}

// One element: adds to the sum of the losses, and returns the gradient.
template <bool with_sum, bool with_grad, class T, class A>
__device__ __forceinline__ T element(int power, A weight, A factor, T x, T y, A& sum) {
  const A difference = A(widen(x)) - A(widen(y));
  if (weight == 0) return narrow<T>(A(0));
  if (with_sum) sum += weight * loss_term(power, difference);
  return with_grad ? narrow<T>(A(weight * factor * loss_slope(power, difference)))
                   : narrow<T>(A(0));
}

// A piece of a sample with operands of any strides.
template <bool with_sum, bool with_grad, class T, class M, class P, class A>
__device__ __forceinline__ void strided_piece(const P& p, const Division& d, int64_t b,
                                              int64_t piece, A factor, Sums<A>& sums) {
  const Layout layout(p);
  const Channels channels(d, p.channels);
  for (Position<1> at(d, piece, p.height * p.width, p.width); at.inside(); at.next()) {
    A weight = 0;
    for (int64_t c = channels.first; c < channels.last; c += channels.step) {
      if (c == channels.first || p.mask_channels != 1) {
        weight = mask_weight<A>(at.template load<M>(p.mask, b, c).v[0]);
        if (c == 0 || p.mask_channels != 1) sums.weight += weight;
      }
      T grad = narrow<T>(A(0));
      if (weight != 0) {
        const T x = at.template load<T>(p.prediction, b, c).v[0];
        const T y = at.template load<T>(p.target, b, c).v[0];
        grad = element<with_sum, with_grad>(p.power, weight, factor, x, y, sums.loss);
      }
      if (with_grad) static_cast<T*>(p.grad)[layout.at(b, c, at.i)] = grad;
    }
  }
}

// The weights of V adjacent elements. If they are interleaved, each weight is that of `repeat`
// elements, and the first element is number `part` of its weight.
template <bool interleaved, int V, class M>
__device__ __forceinline__ Pack<M, V> dense_weights(const M* mask, bool packed, int repeat,
                                                    int part) {
  if (!interleaved && packed) return *reinterpret_cast<const Pack<M, V>*>(mask);
  Pack<M, V> found;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    found.v[j] = interleaved ? *mask : mask[j];
    if (interleaved && ++part == repeat) ++mask, part = 0;
  }
  return found;
}

// A piece of a sample whose prediction, target and gradient lie densely in memory, in one order:
// contiguous planes, or, with p.channels_last, pixels of adjacent channels. Vectors are aligned in
// memory, whatever the size of a plane; the few elements before and after them are taken one by one.
template <bool interleaved, bool with_sum, bool with_grad, class T, class M, int V, class P,
          class A>
__device__ __forceinline__ void dense_piece(const P& p, const Division& d, int64_t b, int64_t piece,
                                            A factor, bool weighted, Sums<A>& sums) {
  using Vector = Pack<T, V>;
  const int64_t plane = p.height * p.width;
  int64_t pixel = piece * kPieceElements;
  int pixels = int(pixel + kPieceElements < plane ? kPieceElements : plane - pixel);
  if (interleaved) {
    const int64_t begin = blockIdx.y * d.each, left = pixels - begin;
    pixel += begin;
    pixels = left <= 0 ? 0 : int(left < d.each ? left : d.each);
  }
  const int repeat = interleaved ? int(p.channels) : 1;
  const int across = interleaved ? kThreads : d.across;
  const int me = interleaved ? int(threadIdx.x) : int(threadIdx.x) & (across - 1);
  Channels channels(d, p.channels);
  if (interleaved) channels.first = 0, channels.last = 1;
  for (int64_t c = channels.first; c < channels.last; c += channels.step) {
    const int64_t first = (b * p.channels + c) * plane + pixel * repeat;
    const M* mask = static_cast<const M*>(p.mask.data) + b * p.mask.batch + c * p.mask.channel +
                    pixel;
    const T* x = static_cast<const T*>(p.prediction.data) + first;
    const T* y = static_cast<const T*>(p.target.data) + first;
    T* to = with_grad ? static_cast<T*>(p.grad) + first : nullptr;
    const bool count = weighted && (c == 0 || p.mask_channels != 1);
    const int elements = pixels * repeat;
    int before = int(-first & (V - 1));
    if (before > elements) before = elements;
    const int vectors = (elements - before) / V, after = (elements - before) % V;

    if (me < before + after) {
      const int i = me + (me < before ? 0 : vectors * V);
      const A weight = mask_weight<A>(mask[i / repeat]);
      if (count && i % repeat == 0) sums.weight += weight;
      T grad = narrow<T>(A(0));
      if (weight != 0) {
        grad = element<with_sum, with_grad>(p.power, weight, factor, x[i], y[i], sums.loss);
      }
      if (with_grad) to[i] = grad;
    }

    const bool packed = reinterpret_cast<uintptr_t>(mask + before) % (V * sizeof(M)) == 0;
    for (int v = me; v < vectors; v += across) {
      A weights[V];
      const int i = before + v * V;
      const int at = interleaved ? i / repeat : i, part = interleaved ? i - at * repeat : 0;
      const bool any = weights_of(dense_weights<interleaved, V>(mask + at, packed, repeat, part),
                                  weights);
      for (int j = 0; count && j < V; ++j) {
        if (!interleaved || (part + j) % repeat == 0) sums.weight += weights[j];
      }
      Vector grad;
      for (int j = 0; j < V; ++j) grad.v[j] = narrow<T>(A(0));
      if (any) {
        const Vector left = *reinterpret_cast<const Vector*>(x + i);
        const Vector right = *reinterpret_cast<const Vector*>(y + i);
        const auto take = [&](int power) {  // a constant for the compiler
#pragma unroll
          for (int j = 0; j < V; ++j) {
            grad.v[j] = element<with_sum, with_grad>(power, weights[j], factor, left.v[j],
                                                     right.v[j], sums.loss);
          }
        };
        p.power == 2 ? take(2) : take(1);
      }
      if (with_grad) store_vector(to + i, grad);
    }
  }
}

// The results of a loss, by the block that ends last.
template <bool with_grad, class A>
__device__ __forceinline__ void finish(const MaskedLoss& p, const Division& d,
                                       const Partial& partial, int64_t areas) {
  A* loss = static_cast<A*>(p.loss);
  const bool known = with_grad || p.area != nullptr, needed = p.normalize == Normalize::mask;
  double sum = 0, weight = 0;
  const int64_t pieces = p.batch * d.pieces;  // of a part
  for (int64_t i = threadIdx.x; i < pieces * d.parts; i += kThreads) {
    sum += partial.losses[i];
    if (needed && !known) weight += partial.weights[i];
  }
  if (p.normalize == Normalize::none) {
    // A few threads per sample, as many as it has sums, up to a warp.
    int team = 1;
    while (team < 32 && team < d.pieces * d.parts) team *= 2;
    const int me = int(threadIdx.x) & (team - 1), teams = kThreads / team;
    for (int64_t first = 0; first < p.batch; first += teams) {
      const int64_t b = first + int(threadIdx.x) / team;
      double sample = 0;
      for (int64_t part = 0; b < p.batch && part < d.parts; ++part) {
        for (int64_t i = me; i < d.pieces; i += team) {
          sample += partial.losses[part * pieces + b * d.pieces + i];
        }
      }
      for (int offset = team / 2; offset > 0; offset /= 2) {
        sample += __shfl_down_sync(kFullWarp, sample, offset);
      }
      if (b < p.batch && me == 0) loss[b] = A(sample);
    }
  }
  sum = block_sum<2>(sum);
  if (needed) weight = known ? total_area<3>(p, areas) : block_sum<4>(weight);
  if (threadIdx.x != 0) return;
  const A scale = scale_of<A>(p, weight);
  *static_cast<A*>(p.scale) = scale;
  if (p.normalize != Normalize::none) *loss = A(sum * scale);
}

// Eight weights of a thread need more registers.
template <class M, int V>
constexpr int kResident = V * sizeof(M) > 16 ? kResidentBlocks - 1 : kResidentBlocks;

// Computes the loss, the gradient, or both; P is MaskedLoss or MaskedLossBackward. V is 1 for
// operands of any strides. The gradient of a loss normalised by the mask requires the `areas`.
template <class P, bool with_grad, class T, class M, int V>
__global__ void __launch_bounds__(kThreads, (kResident<M, V>))
    elements(P p, Division d, Partial partial, int64_t areas) {
  using A = acc_t<T>;
  constexpr bool with_sum = std::is_same<P, MaskedLoss>::value;
  A factor = 0;
  const bool weighted = with_sum && !with_grad && partial.weights != nullptr;
  if constexpr (with_grad && with_sum) factor = known_scale<A>(p, areas);
  const int64_t pieces = p.batch * d.pieces;
  for (int64_t block = blockIdx.x; block < pieces; block += gridDim.x) {
    const int64_t b = quotient(block, d.pieces), piece = block - b * d.pieces;
    if constexpr (!with_sum) {
      factor = static_cast<const A*>(p.grad_loss)[b * p.grad_loss_stride] *
               *static_cast<const A*>(p.scale);
    }
    Sums<A> sums;
    if constexpr (V == 1) {
      strided_piece<with_sum, with_grad, T, M>(p, d, b, piece, factor, sums);
    } else if (p.channels_last) {
      dense_piece<true, with_sum, with_grad, T, M, V>(p, d, b, piece, factor, weighted, sums);
    } else {
      dense_piece<false, with_sum, with_grad, T, M, V>(p, d, b, piece, factor, weighted, sums);
    }
    if constexpr (with_sum) {
      const double loss = block_sum(double(sums.loss));
      const double weight = weighted ? block_sum(double(sums.weight)) : 0;
      if (threadIdx.x == 0) {
        partial.losses[blockIdx.y * pieces + block] = loss;
        if (weighted) partial.weights[blockIdx.y * pieces + block] = weight;
      }
    }
  }
  if constexpr (with_sum) {
    if (is_last_block(p.counter)) finish<with_grad, A>(p, d, partial, areas);
  }
}

// The sum of all weights in weights[0], before a gradient that depends on it.
template <class A, class M>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    measure(MaskedLoss p, Division d, double* weights) {
  const Channels channels(d, p.mask_channels);
  const int64_t plane = p.height * p.width, pieces = p.batch * d.pieces;
  for (int64_t block = blockIdx.x; block < pieces; block += gridDim.x) {
    const int64_t b = quotient(block, d.pieces);
    A sum = 0;
    for (Position<1> at(d, block - b * d.pieces, plane, p.width); at.inside(); at.next()) {
      for (int64_t c = channels.first; c < channels.last; c += channels.step) {
        sum += mask_weight<A>(at.template load<M>(p.mask, b, c).v[0]);
      }
    }
    const double total = block_sum(double(sum));
    if (threadIdx.x == 0) weights[blockIdx.y * pieces + block] = total;
  }
  if (!is_last_block(p.counter)) return;
  double all = 0;
  for (int64_t i = threadIdx.x; i < pieces * d.parts; i += kThreads) all += weights[i];
  all = block_sum<1>(all);
  if (threadIdx.x == 0) weights[0] = all;
}

template <class T, class M, int V>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    scale_gradient(ScaleGradient p, Division d) {
  using A = acc_t<T>;
  const int64_t plane = p.height * p.width;
  const Layout layout(p);
  const Channels channels(d, p.channels);
  for (int64_t block = blockIdx.x; block < p.batch * d.pieces; block += gridDim.x) {
    const int64_t b = quotient(block, d.pieces);
    const A factor = static_cast<const A*>(p.grad_loss)[b * p.grad_loss_stride];
    if (factor == 1) continue;
    for (Position<V> at(d, block - b * d.pieces, plane, p.width); at.inside(); at.next()) {
      A weights[V];
      bool any = false;
      for (int64_t c = channels.first; c < channels.last; c += channels.step) {
        if (c == channels.first || p.mask_channels != 1) {
          any = weights_of<A>(at.template load<M>(p.mask, b, c), weights);
        }
        if (!any) continue;
        T* to = static_cast<T*>(p.grad) + layout.at(b, c, at.i);
        auto grad = *reinterpret_cast<const Pack<T, V>*>(to);
        for (int j = 0; j < V; ++j) {
          if (weights[j] != 0) grad.v[j] = narrow<T>(A(A(widen(grad.v[j])) * factor));
        }
        *reinterpret_cast<Pack<T, V>*>(to) = grad;
      }
    }
  }
}

// True if the operands allow dense_piece.
template <class P>
bool is_dense(const P& p) {
  if (p.channels_last && p.channels > INT32_MAX / kPieceElements) return false;  // of a piece
  const int64_t plane = p.height * p.width;
  const int64_t column = p.channels_last ? p.channels : 1;
  const int64_t channel = p.channels_last ? 1 : plane;
  const Planes operands[] = {p.prediction, p.target};
  for (const Planes& planes : operands) {
    const bool dense = (p.batch == 1 || planes.batch == p.channels * plane) &&
                       (p.channels == 1 || planes.channel == channel) &&
                       (p.height == 1 || planes.row == column * p.width) &&
                       (p.width == 1 || planes.column == column) && aligned(planes.data, 16);
    if (!dense) return false;
  }
  return aligned(p.grad, 16) && (p.height == 1 || p.mask.row == p.width) &&
         (p.width == 1 || p.mask.column == 1) && (!p.channels_last || p.mask_channels == 1);
}

template <class P>
Division division(const P& p) {
  const bool dense = is_dense(p);
  const int size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  return division_of(p.batch, p.channels, p.height * p.width, dense ? 16 / size : 1,
                     dense && p.channels_last);
}

template <bool with_grad, class T, class M, class P>
void launch_elements(const P& p, const Division& d, const Partial& partial, int64_t areas,
                     void* stream) {
  const dim3 grid = d.grid(p.batch);
  if (is_dense(p)) {
    CEK_LAUNCH((elements<P, with_grad, T, M, 16 / sizeof(T)>), grid, kThreads, stream, p, d,
               partial, areas);
  } else {
    CEK_LAUNCH((elements<P, with_grad, T, M, 1>), grid, kThreads, stream, p, d, partial, areas);
  }
}

// Sums per launch, at most: of the loss, and of the weights.
int64_t sums_of(const MaskedLoss& p, const Division& d, const Division& of_mask) {
  const int64_t parts = d.parts > of_mask.parts ? d.parts : of_mask.parts;
  return p.batch * d.pieces * parts;
}

Division division_of_mask(const MaskedLoss& p) {
  return division_of(p.batch, p.mask_channels, p.height * p.width, 1, false);
}

template <class T, class M>
void start(MaskedLoss p, void* workspace, void* stream) {
  const Division d = division(p), of_mask = division_of_mask(p);
  const bool unknown = p.normalize == Normalize::mask && p.area == nullptr;
  Partial partial{static_cast<double*>(workspace), nullptr};
  double* weights = partial.losses + sums_of(p, d, of_mask);
  int64_t areas = p.batch;
  if (p.grad == nullptr) {
    if (unknown) partial.weights = weights;
    launch_elements<false, T, M>(p, d, partial, areas, stream);
    return;
  }
  if (unknown) {
    areas = p.batch * d.pieces > 0;
    if (areas) {
      CEK_LAUNCH((measure<acc_t<T>, M>), of_mask.grid(p.batch), kThreads, stream, p, of_mask,
                 weights);
    }
    p.area = weights, p.area_dtype = DType::f64, p.area_stride = 1;
  }
  launch_elements<true, T, M>(p, d, partial, areas, stream);
}

template <class T, class M>
void start(const MaskedLossBackward& p, void*, void* stream) {
  const Division d = division(p);
  if (p.batch * d.pieces == 0) return;
  launch_elements<true, T, M>(p, d, Partial{}, 0, stream);
}

template <class T, class M>
void start(const ScaleGradient& p, void*, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const int64_t plane = p.height * p.width;
  if (p.batch * plane == 0) return;
  const bool vectors = !p.channels_last && plane % V == 0;
  if (vectors && packs<M, V>(p.mask, p.width) && aligned(p.grad, 16)) {
    const Division d = division_of(p.batch, p.channels, plane, V, false);
    CEK_LAUNCH((scale_gradient<T, M, V>), d.grid(p.batch), kThreads, stream, p, d);
  } else {
    const Division d = division_of(p.batch, p.channels, plane, 1, false);
    CEK_LAUNCH((scale_gradient<T, M, 1>), d.grid(p.batch), kThreads, stream, p, d);
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
  return size_t(2 * sums_of(p, division(p), division_of_mask(p))) * sizeof(double);
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
