// Host versions of the functions of csrc/cuda/mma.h: each lane shares its registers with its warp
// and reads from the others the elements that the documented fragment layout assigns to it.
#pragma once

#include "../../../csrc/numerics.h"
#include "cuda_host.h"

namespace cekernels {
namespace cuda {
namespace {

struct Registers {
  uint32_t a[4], b[2];
};

// Registers shared by the lanes of each warp of the block.
inline Registers* shown() {
  static Registers registers[1024];
  return registers + threadIdx.x / 32 * 32;
}

// d += a b in float32, along the depth; A(registers, row, k) is an element, as is B.
template <int kDepth, class A, class B>
void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], A element_a,
             B element_b) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  Registers* warp = shown();
  memcpy(warp[lane].a, a, sizeof(a));
  memcpy(warp[lane].b, b, sizeof(b));
  __syncwarp();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + i / 2 * 8, column = 2 * q + i % 2;
    for (unsigned k = 0; k < kDepth; ++k) {
      d[i] += element_a(warp, row, k) * element_b(warp, k, column);
    }
  }
  __syncwarp();
}

template <class T>
uint32_t narrow_pair(float low, float high) {
  return narrow<T>(low).bits | uint32_t(narrow<T>(high).bits) << 16;
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & 0xffffe000u : bits;
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto cut = [](uint32_t bits) { return bit_cast<float>(bits & 0xffffe000u); };
  product<8>(
      d, a, b,
      [&](const Registers* warp, unsigned row, unsigned k) {
        return cut(warp[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]);
      },
      [&](const Registers* warp, unsigned k, unsigned column) {
        return cut(warp[column * 4 + k % 4].b[k / 4]);
      });
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto half = [](uint32_t bits, unsigned which) {
    return widen(T{uint16_t(bits >> 16 * which)});
  };
  product<16>(
      d, a, b,
      [&](const Registers* warp, unsigned row, unsigned k) {
        return half(warp[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2);
      },
      [&](const Registers* warp, unsigned k, unsigned column) {
        return half(warp[column * 4 + k % 8 / 2].b[k / 8], k % 2);
      });
}

inline void load_transposed(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    fprintf(stderr, "cuda_host: ldmatrix wants rows aligned to 16 bytes\n");
    abort();
  }
  const unsigned lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (unsigned m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (unsigned i = 0; i < 2; ++i) {
      const int lane_of_row = int(8 * m + 2 * q + i);
      pair[i] = __shfl_sync(~0u, static_cast<const uint16_t*>(row), lane_of_row)[g];
    }
    r[m] = pair[0] | uint32_t(pair[1]) << 16;
  }
}

}  // namespace
}  // namespace cuda
}  // namespace cekernels
