// Vectors of the width of the instruction set that this file is compiled for (CEK_ISA), and scratch
// memory. Compiled several times with different flags, therefore all with internal linkage.
#pragma once

#include <cstdlib>
#include <new>

#include "../numerics.h"
#include "kernels.h"

namespace cekernels {
namespace cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

// Precedes a loop whose arrays must stay in registers.
#define CEK_UNROLL _Pragma("GCC unroll 16")

template <class T, int W = kVectorBytes / sizeof(T)>
struct Simd {
  static constexpr int width = W;
  typedef T vector __attribute__((vector_size(W * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(W * sizeof(T)), aligned(1), may_alias));

  static CEK_INLINE vector load(const T* from) { return *reinterpret_cast<const unaligned*>(from); }
  static CEK_INLINE void store(T* to, vector v) { *reinterpret_cast<unaligned*>(to) = v; }
};

// Uninitialised memory of one thread, freed at the end of its scope.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T*>(aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

CEK_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
CEK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CEK_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace cpu
}  // namespace cekernels
