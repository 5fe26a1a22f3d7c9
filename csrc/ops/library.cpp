// Parts of the libraries other than the ops: threads for the CPU kernels, and queries to and from
// Python.
#include "common.h"

int64_t cekernels_float32_products() {
  StableIValue stack[1];
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("cekernels::float32_products", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<int64_t>(stack[0]);
}

#ifndef CEK_CUDA
namespace cekernels {
namespace cpu {

void parallel_for(int64_t count, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  if (count <= 0) return;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, f, context));
}

int64_t thread_count() { return int64_t(torch::stable::get_num_threads()); }

}  // namespace cpu
}  // namespace cekernels

// Instruction set used by the CPU kernels, or the error, for `python -m cekernels.info`.
extern "C" __attribute__((visibility("default"))) const char* cekernels_instruction_set() {
  try {
    return cekernels::cpu::instruction_set();
  } catch (const std::exception& error) {
    static const std::string message = error.what();
    return message.c_str();
  }
}
#endif
