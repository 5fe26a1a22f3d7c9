// Conversions and loss terms, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CEK_INLINE __host__ __device__ __forceinline__
#else
#define CEK_INLINE inline __attribute__((always_inline))
#endif

namespace cekernels {
namespace {  // internal linkage: the linker must not merge code of different instruction sets

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
CEK_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Sums are accumulated in float32, or in float64 for float64 inputs.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

CEK_INLINE float widen(float x) { return x; }
CEK_INLINE double widen(double x) { return x; }
CEK_INLINE float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
CEK_INLINE float widen(Half x) {
  // Shift exponent and mantissa into place, then rescale by 2^112: exact, including subnormals.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t special = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const float scaled = bit_cast<float>(magnitude) * 5.192296858534828e33f;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

template <class T>
CEK_INLINE T narrow(acc_t<T> x) {
  return T(x);
}
template <>
CEK_INLINE BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x != x ? (bits >> 16) | 0x40u : rounded)};
}
template <>
CEK_INLINE Half narrow<Half>(float x) {
  // To nearest, ties to even; subnormals are rounded by the addition of a large number.
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  if (magnitude >= 0x477ff000u) result = 0x7c00u;  // 65520 and above round to infinity
  if (magnitude > 0x7f800000u) result = 0x7e00u;
  return {uint16_t(result | sign)};
}

// The weight of a mask element: the value of a floating-point mask, else 1 where it is not 0.
template <class A>
CEK_INLINE A mask_weight(uint8_t m) {
  return m != 0 ? A(1) : A(0);
}
template <class A, class M>
CEK_INLINE A mask_weight(M m) {
  return A(widen(m));
}

template <class A>
CEK_INLINE A loss_term(int power, A difference) {
  return power == 2 ? difference * difference : (difference < 0 ? -difference : difference);
}

template <class A>
CEK_INLINE A loss_slope(int power, A difference) {
  if (power == 2) return 2 * difference;
  // 0 for NaN, as in torch.sign.
  return A(difference > 0) - A(difference < 0);
}

}  // namespace
}  // namespace cekernels
