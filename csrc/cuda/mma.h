// Thin wrappers of the tensor-core instructions of sm_80 and later. Without nvcc,
// tests/helpers/cuda_host provides the same functions, lane by lane.
//
// Fragments (PTX ISA, "Matrix fragments for mma.m16n8k16 / m16n8k8"), with g = lane / 4 and
// q = lane % 4; two 16-bit elements share a register, the first in its lower half:
//   d (16 x 8)      d[0], d[1]: row g, columns 2q, 2q + 1;  d[2], d[3]: row g + 8
//   16 bit  a (16 x 16)  a[0]: row g, depth 2q, 2q + 1;  a[1]: row g + 8;  a[2], a[3]: depth + 8
//           b (16 x 8)   b[0]: depth 2q, 2q + 1, column g;  b[1]: depth + 8
//   TF32    a (16 x 8)   a[0]: row g, depth q;  a[1]: row g + 8;  a[2], a[3]: depth + 4
//           b (8 x 8)    b[0]: depth q, column g;  b[1]: depth + 4
#pragma once

#include "device.h"

#ifndef __CUDACC__
#include "mma_host.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "The CUDA kernels need compute capability 8.0 or newer: leave older ones out"
#endif

namespace cekernels {
namespace cuda {
namespace {

// Rounds to nearest TF32, ties away from zero; the product alone would truncate. Volatile: rounded
// operands that do not change in a loop would be kept beside the others, and registers spilled.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Rounds to two elements of 16 bits, to nearest even.
template <class T>
__device__ __forceinline__ uint32_t narrow_pair(float low, float high);
#define CEK_NARROW(T, type)                                                    \
  template <>                                                                  \
  __device__ __forceinline__ uint32_t narrow_pair<T>(float low, float high) {  \
    uint32_t bits;                                                             \
    asm("cvt.rn." type ".f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low)); \
    return bits;                                                               \
  }
CEK_NARROW(BFloat16, "bf16x2")
CEK_NARROW(Half, "f16x2")
#undef CEK_NARROW

// The products below are volatile: all lanes of a warp must execute them together, and they must
// not be moved into a branch in which their result is used.

// d += a b with TF32 operands.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b with 16-bit operands of type T.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#define CEK_MMA(T, type)                                                              \
  template <>                                                                         \
  __device__ __forceinline__ void mma<T>(float (&d)[4], const uint32_t (&a)[4],       \
                                         const uint32_t (&b)[2]) {                    \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type               \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"         \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
  }
CEK_MMA(BFloat16, "bf16")
CEK_MMA(Half, "f16")
#undef CEK_MMA

// Loads four 8 x 8 matrices of 16-bit elements from shared memory, transposed. Lane l passes the
// address of row l % 8 of matrix l / 8 (16 bytes) and receives in r[m] the elements of matrix m in
// rows 2q and 2q + 1, column g.
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void* row) {
  const unsigned address = unsigned(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

}  // namespace
}  // namespace cuda
}  // namespace cekernels
#endif

namespace cekernels {
namespace cuda {
namespace {

template <class T>
__device__ __forceinline__ Pack<T, 4> narrow_pack(const Pack<float, 4>& x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    const Pack<uint32_t, 2> words = {narrow_pair<T>(x.v[0], x.v[1]),
                                     narrow_pair<T>(x.v[2], x.v[3])};
    return bit_cast<Pack<T, 4>>(words);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace cekernels
