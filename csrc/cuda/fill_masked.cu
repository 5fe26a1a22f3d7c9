// Images filled with a constant where a mask is not 0; the image is read only where it is kept.
// Copies the bits of elements, 16 bytes at a time where the alignment allows it.
#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kThreads = kPieceThreads;

// A thread's masks of 8 bytes for 16 bytes of an image fill half of the registers.
template <class M, int V>
constexpr int kResident = V * sizeof(M) > 64 ? kResidentBlocks / 2 : kResidentBlocks;

template <class T, class M, int V>
__global__ void __launch_bounds__(kThreads, (kResident<M, V>)) fill(FillMasked p, Division d) {
  const int64_t plane = p.height * p.width;
  const Layout layout(p);
  const int drop = p.mask_floating ? 1 : 0;  // shifts out the sign bit: -0.0 counts as 0
  const Channels channels(d, p.channels);
  for (int64_t block = blockIdx.x; block < p.batch * d.pieces; block += gridDim.x) {
    const int64_t b = quotient(block, d.pieces);
    for (Position<V> at(d, block - b * d.pieces, plane, p.width); at.inside(); at.next()) {
      for (int64_t c = channels.first; c < channels.last; c += channels.step) {
        const auto mask = at.template load<M>(p.mask, b, c);
        bool all = true;
        for (int j = 0; j < V; ++j) all &= M(mask.v[j] << drop) != 0;
        const T value = static_cast<const T*>(p.value)[c];
        Pack<T, V> result;
        for (int j = 0; j < V; ++j) result.v[j] = value;
        if (!all) {
          const auto image = at.template load<T>(p.image, b, c);
          for (int j = 0; j < V; ++j) {
            if (M(mask.v[j] << drop) == 0) result.v[j] = image.v[j];
          }
        }
        const int64_t planar = (b * p.channels + c) * plane + at.i;
        T* to = static_cast<T*>(p.output) + (V == 1 ? layout.at(b, c, at.i) : planar);
        *reinterpret_cast<Pack<T, V>*>(to) = result;
      }
    }
  }
}

template <class T, class M>
void start(const FillMasked& p, void* stream) {
  constexpr int V = 16 / sizeof(T);
  const int64_t plane = p.height * p.width;
  if (p.batch * p.channels * plane == 0) return;
  if (!p.channels_last && plane % V == 0 && packs<T, V>(p.image, p.width) &&
      packs<M, V>(p.mask, p.width) && aligned(p.output, 16)) {
    const Division d = division_of(p.batch, p.channels, plane, V, false);
    CEK_LAUNCH((fill<T, M, V>), d.grid(p.batch), kThreads, stream, p, d);
  } else {
    const Division d = division_of(p.batch, p.channels, plane, 1, false);
    CEK_LAUNCH((fill<T, M, 1>), d.grid(p.batch), kThreads, stream, p, d);
  }
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

size_t workspace_bytes(const FillMasked&) { return 0; }

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
