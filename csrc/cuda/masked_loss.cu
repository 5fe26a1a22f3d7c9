// Masked L2 and L1 losses and their gradient. Prediction and target are loaded, 16 bytes at a time
// where their alignment allows, only where the mask is set. The sum runs in two stages whose order
// depends on the shape alone, so that every run gives the same bits.
#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlockElements = 8192;  // of one plane

__device__ __forceinline__ int64_t offset_of(const Planes& planes, int64_t i, int64_t width) {
  return planes.row == width ? i : i / width * planes.row + i % width;
}

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load(const Planes& planes, int64_t b, int64_t c, int64_t i,
                                           int64_t width) {
  const T* from = static_cast<const T*>(planes.data) + b * planes.batch + c * planes.channel;
  return *reinterpret_cast<const Pack<T, V>*>(from + offset_of(planes, i, width));
}

template <class A, class M, int V>
__device__ __forceinline__ bool weights_of(const Pack<M, V>& mask, A (&weights)[V]) {
  bool any = false;
  for (int j = 0; j < V; ++j) {
    weights[j] = mask_weight<A>(mask.v[j]);
    any |= weights[j] != 0;
  }
  return any;
}

template <int power, class T, class M, int V>
__global__ void __launch_bounds__(kThreads) partial_sums(MaskedLoss p, int64_t pieces,
                                                         double* sums, double* weight_sums) {
  using A = acc_t<T>;
  const int64_t plane = p.height * p.width;
  for (int64_t block = blockIdx.x; block < p.batch * pieces; block += gridDim.x) {
    const int64_t b = block / pieces, first = block % pieces * kBlockElements;
    const int64_t last = first + kBlockElements < plane ? first + kBlockElements : plane;
    A sum = 0, weight_sum = 0;
    for (int64_t i = first + threadIdx.x * V; i < last; i += kThreads * V) {
      A weights[V];
      bool any = false;
      for (int64_t c = 0; c < p.channels; ++c) {
        if (c == 0 || p.mask_channels != 1) {
          any = weights_of<A>(load<M, V>(p.mask, b, c, i, p.width), weights);
          for (int j = 0; j < V; ++j) weight_sum += weights[j];
        }
        if (!any) continue;
        const auto x = load<T, V>(p.prediction, b, c, i, p.width);
        const auto y = load<T, V>(p.target, b, c, i, p.width);
        for (int j = 0; j < V; ++j) {
          const A difference = A(widen(x.v[j])) - A(widen(y.v[j]));
          if (weights[j] != 0) sum += weights[j] * loss_term<power>(difference);
        }
      }
    }
    const double total = block_sum(double(sum)), weight = block_sum(double(weight_sum));
    if (threadIdx.x == 0) {
      sums[block] = total;
      weight_sums[block] = weight;
    }
  }
}

__device__ __forceinline__ double area_of(const MaskedLoss& p, int64_t b) {
  const int64_t i = b * p.area_stride;
  if (p.area_dtype == DType::f32) return static_cast<const float*>(p.area)[i];
  if (p.area_dtype == DType::f64) return static_cast<const double*>(p.area)[i];
  return double(static_cast<const int64_t*>(p.area)[i]);
}

template <class A>
__global__ void __launch_bounds__(kThreads) finish(MaskedLoss p, int64_t pieces, const double* sums,
                                                   const double* weight_sums) {
  A* loss = static_cast<A*>(p.loss);
  const int64_t count = p.batch * pieces;
  double sum = 0, weight = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    sum += sums[i];
    if (p.area == nullptr) weight += weight_sums[i];
  }
  for (int64_t b = threadIdx.x; b < p.batch; b += kThreads) {
    if (p.area != nullptr) weight += area_of(p, b);
    if (p.normalize == Normalize::none) {
      double sample = 0;
      for (int64_t i = b * pieces; i < (b + 1) * pieces; ++i) sample += sums[i];
      loss[b] = A(sample);
    }
  }
  sum = block_sum(sum), weight = block_sum(weight);
  if (threadIdx.x != 0) return;
  A scale = 1;
  if (p.normalize == Normalize::mask) {
    const A divisor = A(weight) * A(p.mask_channels ? p.channels / p.mask_channels : 0);
    scale = divisor > 0 ? 1 / divisor : 0;
  } else if (p.normalize == Normalize::all) {
    const int64_t elements = p.batch * p.channels * p.height * p.width;
    scale = 1 / A(elements > 0 ? elements : 1);
  }
  *static_cast<A*>(p.scale) = scale;
  if (p.normalize != Normalize::none) *loss = A(sum * scale);
}

template <int power, class T, class M, int V>
__global__ void __launch_bounds__(kThreads) gradient(MaskedLossBackward p) {
  using A = acc_t<T>;
  const int64_t plane = p.height * p.width, packs = plane / V;
  const A scale = *static_cast<const A*>(p.scale);
  for (int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x; n < p.batch * packs;
       n += int64_t(gridDim.x) * kThreads) {
    const int64_t b = n / packs, i = n % packs * V;
    const A factor = static_cast<const A*>(p.grad_loss)[b * p.grad_loss_stride] * scale;
    A weights[V];
    bool any = false;
    for (int64_t c = 0; c < p.channels; ++c) {
      if (c == 0 || p.mask_channels != 1) {
        any = weights_of<A>(load<M, V>(p.mask, b, c, i, p.width), weights);
      }
      Pack<T, V> grad;
      for (int j = 0; j < V; ++j) grad.v[j] = narrow<T>(A(0));
      if (any) {
        const auto x = load<T, V>(p.prediction, b, c, i, p.width);
        const auto y = load<T, V>(p.target, b, c, i, p.width);
        for (int j = 0; j < V; ++j) {
          const A difference = A(widen(x.v[j])) - A(widen(y.v[j]));
          if (weights[j] != 0) {
            grad.v[j] = narrow<T>(A(weights[j] * factor * loss_slope<power>(difference)));
          }
        }
      }
      T* to = static_cast<T*>(p.grad) + (b * p.channels + c) * plane + i;
      *reinterpret_cast<Pack<T, V>*>(to) = grad;
    }
  }
}

// V elements at once: dense planes, and every pack of every operand aligned.
template <class T, class M, int V, class P>
bool packs(const P& p) {
  const auto fits = [&](const Planes& planes, int64_t size) {
    return planes.row == p.width && planes.batch % V == 0 && planes.channel % V == 0 &&
           aligned(planes.data, V * size);
  };
  return p.height * p.width % V == 0 && fits(p.prediction, sizeof(T)) &&
         fits(p.target, sizeof(T)) && fits(p.mask, sizeof(M));
}

template <int power, class T, class M>
void forward(const MaskedLoss& p, void* workspace, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const int64_t pieces = divide_up(p.height * p.width, kBlockElements), count = p.batch * pieces;
  double* sums = static_cast<double*>(workspace);
  double* weight_sums = sums + count;
  if (count > 0) {
    if (packs<T, M, V>(p)) {
      CEK_LAUNCH((partial_sums<power, T, M, V>), grid_of(count), kThreads, stream, p, pieces, sums,
                 weight_sums);
    } else {
      CEK_LAUNCH((partial_sums<power, T, M, 1>), grid_of(count), kThreads, stream, p, pieces, sums,
                 weight_sums);
    }
  }
  CEK_LAUNCH(finish<acc_t<T>>, 1, kThreads, stream, p, pieces, sums, weight_sums);
}

template <int power, class T, class M>
void backward(const MaskedLossBackward& p, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const int64_t elements = p.batch * p.height * p.width;
  if (packs<T, M, V>(p) && aligned(p.grad, 16)) {
    CEK_LAUNCH((gradient<power, T, M, V>), grid_of(divide_up(elements / V, kThreads)), kThreads,
               stream, p);
  } else {
    CEK_LAUNCH((gradient<power, T, M, 1>), grid_of(divide_up(elements, kThreads)), kThreads, stream,
               p);
  }
}

template <int power, class T, class M>
void start(const MaskedLoss& p, void* workspace, void* stream) {
  forward<power, T, M>(p, workspace, stream);
}
template <int power, class T, class M>
void start(const MaskedLossBackward& p, void*, void* stream) {
  backward<power, T, M>(p, stream);
}

template <class T, class P>
void with_mask(const P& p, void* workspace, void* stream) {
  if (p.mask_dtype == DType::u8) {
    p.power == 2 ? start<2, T, uint8_t>(p, workspace, stream)
                 : start<1, T, uint8_t>(p, workspace, stream);
  } else {
    p.power == 2 ? start<2, T, acc_t<T>>(p, workspace, stream)
                 : start<1, T, acc_t<T>>(p, workspace, stream);
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

size_t workspace_bytes(const MaskedLoss& p) {
  return size_t(2 * p.batch * divide_up(p.height * p.width, kBlockElements)) * sizeof(double);
}

const char* run(const MaskedLoss& p, void* workspace, void* stream) {
  return with_types(p, workspace, stream);
}

const char* run(const MaskedLossBackward& p, void* workspace, void* stream) {
  return with_types(p, workspace, stream);
}

}  // namespace cuda
}  // namespace cekernels
