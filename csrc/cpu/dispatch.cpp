// Selection of the instruction set of the CPU kernels.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace cekernels {
namespace cpu {

const char* instruction_set() {
  static const char* const chosen = [] {
    const char* limit = std::getenv("CEKERNELS_ISA");
    if (limit == nullptr) limit = "";
    bool known = *limit == '\0';
    for (const char* name : {"baseline", "avx2", "avx512", "avx512_bf16"}) {
      known |= std::strcmp(limit, name) == 0;
    }
    if (!known) {
      throw std::invalid_argument(
          "environment variable CEKERNELS_ISA must be 'baseline', 'avx2', 'avx512' or "
          "'avx512_bf16', got '" +
          std::string(limit) + "'");
    }
#ifdef CEK_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (std::strcmp(limit, "baseline") != 0) {
#ifdef CEK_AVX512_BF16
      const bool limited = std::strcmp(limit, "avx2") == 0 || std::strcmp(limit, "avx512") == 0;
      if (avx512 && __builtin_cpu_supports("avx512bf16") && !limited) return "avx512_bf16";
#endif
      if (avx512 && std::strcmp(limit, "avx2") != 0) return "avx512";
      if (avx2) return "avx2";
    }
#endif
    return "baseline";
  }();
  return chosen;
}

}  // namespace cpu
}  // namespace cekernels
