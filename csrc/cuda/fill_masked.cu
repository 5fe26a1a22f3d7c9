// A constant where a mask is not 0; the image is read only where it is kept.
#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <class T, class M>
__global__ void __launch_bounds__(kThreads) fill(FillMasked p) {
  const int64_t plane = p.height * p.width;
  const int drop = p.mask_floating ? 1 : 0;  // the sign bit of -0.0
  for (int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x; n < p.batch * plane;
       n += int64_t(gridDim.x) * kThreads) {
    const int64_t b = n / plane, i = n % plane, y = i / p.width, x = i % p.width;
    for (int64_t c = 0; c < p.channels; ++c) {
      const M m = static_cast<const M*>(
          p.mask.data)[b * p.mask.batch + c * p.mask.channel + y * p.mask.row + x];
      T result;
      if (M(m << drop) != 0) {
        result = static_cast<const T*>(p.value)[c];
      } else {
        result = static_cast<const T*>(
            p.image.data)[b * p.image.batch + c * p.image.channel + y * p.image.row + x];
      }
      static_cast<T*>(p.output)[(b * p.channels + c) * plane + i] = result;
    }
  }
}

template <class T, class M>
void start(const FillMasked& p, void* stream) {
  const int64_t blocks = divide_up(p.batch * p.height * p.width, kThreads);
  CEK_LAUNCH((fill<T, M>), grid_of(blocks), kThreads, stream, p);
}

template <class T>
void with_mask(const FillMasked& p, void* stream) {
  switch (p.mask_element_size) {
    case 2: return start<T, uint16_t>(p, stream);
    case 4: return start<T, uint32_t>(p, stream);
    case 8: return start<T, uint64_t>(p, stream);
    default: return start<T, uint8_t>(p, stream);
  }
}

}  // namespace

const char* run(const FillMasked& p, void*, void* stream) {
  switch (p.element_size) {
    case 2: with_mask<uint16_t>(p, stream); break;
    case 4: with_mask<uint32_t>(p, stream); break;
    case 8: with_mask<uint64_t>(p, stream); break;
    default: with_mask<uint8_t>(p, stream);
  }
  return launch_error();
}

}  // namespace cuda
}  // namespace cekernels
