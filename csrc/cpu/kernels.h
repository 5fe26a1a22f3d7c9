// CPU kernels. Those that benefit from wide registers are compiled once per instruction set
// (CEK_ISA) and selected at run time, so that one binary runs on every machine.
#pragma once

#include <cstring>

#include "../params.h"

namespace cekernels {
namespace cpu {

// Runs f(begin, end, context) over pieces of [0, count) on torch's threads (csrc/ops/library.cpp).
void parallel_for(int64_t count, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context);
int64_t thread_count();

template <class F>
inline void parallel(int64_t count, int64_t grain, const F& f) {
  parallel_for(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const F*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

#define CEK_DECLARE_RUN(Params) void run(const Params& p);
namespace baseline {
CEK_FOR_EACH_KERNEL(CEK_DECLARE_RUN)
CEK_FOR_EACH_CPU_KERNEL(CEK_DECLARE_RUN)
}  // namespace baseline
#ifdef CEK_X86
namespace avx2 {
CEK_FOR_EACH_KERNEL(CEK_DECLARE_RUN)
CEK_FOR_EACH_CPU_KERNEL(CEK_DECLARE_RUN)
}  // namespace avx2
namespace avx512 {
CEK_FOR_EACH_KERNEL(CEK_DECLARE_RUN)
CEK_FOR_EACH_CPU_KERNEL(CEK_DECLARE_RUN)
}  // namespace avx512
#endif
#ifdef CEK_AVX512_BF16
namespace avx512_bf16 {  // for bfloat16 only
CEK_DECLARE_RUN(LinearForward)
}  // namespace avx512_bf16
#endif
#undef CEK_DECLARE_RUN

// "baseline", "avx2", "avx512" or "avx512_bf16": the best supported by this machine, limited by the environment
// variable CEKERNELS_ISA. Determined once, at the first call; throws std::invalid_argument if that
// variable is none of them.
const char* instruction_set();

template <class Params>
void run_on_best(const Params& p) {
#ifdef CEK_X86
  switch (instruction_set()[3]) {
    case '5': return avx512::run(p);
    case '2': return avx2::run(p);
  }
#endif
  baseline::run(p);
}

template <class Params>
void dispatch(const Params& p) {
  run_on_best(p);
}

// True if the kernel of the channel-wise map multiplies bfloat16 without widening it.
inline bool has_bf16_products() { return std::strcmp(instruction_set(), "avx512_bf16") == 0; }

#ifdef CEK_AVX512_BF16
template <>
inline void dispatch(const LinearForward& p) {
  has_bf16_products() && p.dtype == DType::bf16 ? avx512_bf16::run(p) : run_on_best(p);
}
#endif

// Compiled once: their code does not benefit from wide registers.
void run(const Shapes& p);
template <>
inline void dispatch(const Shapes& p) {
  instruction_set();  // for its check of the environment
  run(p);
}
void run(const RemoveSeam& p);
template <>
inline void dispatch(const RemoveSeam& p) {
  instruction_set();
  run(p);
}

}  // namespace cpu
}  // namespace cekernels
