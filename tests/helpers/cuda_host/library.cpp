// The kernels of csrc/cuda, or with CPU_KERNELS those of csrc/cpu, as a library for ctypes. The
// parameter structs are passed as bytes, in the order of csrc/params.h.
#include <cstdlib>
#include <vector>

#ifdef CPU_KERNELS
#include "../../../csrc/cpu/kernels.h"

static bool ends_only = false;  // run only the first and the last of many tasks
extern "C" void set_ends_only(bool value) { ends_only = value; }

namespace cekernels {
namespace cpu {
void parallel_for(int64_t count, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  for (int64_t i = 0; i < count;) {
    f(i, i + grain < count ? i + grain : count, context);
    i = ends_only && i + grain < count ? count - 1 : i + grain;
  }
}
int64_t thread_count() { return 2; }
}  // namespace cpu
}  // namespace cekernels

#define CEK_RUN(name, Params)                                 \
  extern "C" const char* name(const void* p) {                \
    cekernels::cpu::dispatch(*static_cast<const Params*>(p)); \
    return nullptr;                                           \
  }
extern "C" const char* run_shapes(const void* p) {
  cekernels::cpu::run(*static_cast<const cekernels::Shapes*>(p));
  return nullptr;
}
#else
#include "../../../csrc/cuda/device.h"
#include "../../../csrc/cuda/kernels.h"
#include "../../../csrc/cuda/mma.h"

#define CEK_RUN(name, Params)                                         \
  extern "C" const char* name(const void* bytes) {                    \
    const Params& p = *static_cast<const Params*>(bytes);             \
    std::vector<char> workspace(cekernels::cuda::workspace_bytes(p)); \
    return cekernels::cuda::run(p, workspace.data(), nullptr);        \
  }
CEK_RUN(run_shapes, cekernels::Shapes)

CEK_RUN(run_scale_gradient, cekernels::ScaleGradient)

extern "C" void set_reversed(bool reversed) { cuda_host::reversed = reversed; }
extern "C" void set_ends_only(bool ends_only) { cuda_host::ends_only = ends_only; }
extern "C" int64_t quotient(int64_t a, int64_t b) { return cekernels::cuda::quotient(a, b); }

// For the tests of cuda_host.h: thread i reads the value written by thread i + 1.
static void neighbours(const int* from, int* to, bool with_barrier) {
  __shared__ int shared[256];
  shared[threadIdx.x] = from[threadIdx.x];
  if (with_barrier) __syncthreads();
  to[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
extern "C" void run_neighbours(const int* from, int* to, int threads, bool with_barrier) {
  cuda_host::launch(1, unsigned(threads), [=] { neighbours(from, to, with_barrier); });
}

// For the tests of mma.h: one warp, each lane with its own registers.
extern "C" void run_mma(int kind, const uint32_t* a, const uint32_t* b, float* d) {
  using namespace cekernels;
  cuda_host::launch(1, 32, [=] {
    uint32_t my_a[4], my_b[2];
    float my_d[4];
    memcpy(my_a, a + 4 * threadIdx.x, sizeof(my_a));
    memcpy(my_b, b + 2 * threadIdx.x, sizeof(my_b));
    memcpy(my_d, d + 4 * threadIdx.x, sizeof(my_d));
    if (kind == 0) cuda::mma<Half>(my_d, my_a, my_b);
    if (kind == 1) cuda::mma<BFloat16>(my_d, my_a, my_b);
    if (kind == 2) cuda::mma_tf32(my_d, my_a, my_b);
    memcpy(d + 4 * threadIdx.x, my_d, sizeof(my_d));
  });
}
extern "C" void run_load_transposed(const uint16_t* rows, int stride, uint32_t* r) {
  cuda_host::launch(1, 32, [=] {
    uint32_t mine[4];
    cekernels::cuda::load_transposed(mine, rows + threadIdx.x * unsigned(stride));
    memcpy(r + 4 * threadIdx.x, mine, sizeof(mine));
  });
}
extern "C" uint32_t run_to_tf32(float x) { return cekernels::cuda::to_tf32(x); }
#endif

CEK_RUN(run_linear, cekernels::LinearForward)
CEK_RUN(run_linear_backward, cekernels::LinearBackward)
CEK_RUN(run_loss, cekernels::MaskedLoss)
CEK_RUN(run_loss_backward, cekernels::MaskedLossBackward)
CEK_RUN(run_fill, cekernels::FillMasked)
