// A stand-in for the CUDA runtime: host code compiled by nvcc calls it, and each launch goes to a
// function of the test. Also the kernels' entry points for ctypes; the parameter structs are passed
// as bytes, in the order of csrc/params.h.
#include <cstring>
#include <map>
#include <string>

#include "../../../csrc/cuda/kernels.h"

struct dim3 {
  unsigned x, y, z;
};

namespace {

using OnLaunch = void (*)(const char* kernel, const unsigned* dimensions, void** arguments,
                          size_t shared);
using OnMemset = void (*)(void* to, int value, size_t bytes);
using Allocate = void* (*)(size_t bytes);
OnLaunch on_launch;
OnMemset on_memset;
Allocate allocate;

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration;

// Bytes of shared memory that kernels may use per device, beyond those that every kernel may.
std::map<std::pair<int, const void*>, size_t> allowed;
constexpr size_t kAlways = 48 << 10;
int device, attributes_set, last_error;

int launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared) {
  if (shared > kAlways && shared > allowed[{device, function}]) return last_error = 1;
  const unsigned dimensions[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  on_launch(kernels().at(function).c_str(), dimensions, arguments, shared);
  return 0;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  kernels()[function] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return 0;
}
int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                       void*) {
  return launch(kernel, grid, block, arguments, shared);
}
int cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                     void*) {
  return launch(function, grid, block, arguments, shared);
}
int cudaMemsetAsync(void* to, int value, size_t bytes, void*) {
  memset(to, value, bytes);
  on_memset(to, value, bytes);
  return 0;
}
int cudaGetDevice(int* current) {
  *current = device;
  return 0;
}
int cudaFuncSetAttribute(const void* function, int, int bytes) {
  ++attributes_set;
  allowed[{device, function}] = size_t(bytes);
  return 0;
}
int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}
const char* cudaGetErrorString(int) { return "invalid argument"; }

void set_device(int current) { device = current; }
int count_attributes_set() { return attributes_set; }

void set_callbacks(OnLaunch launch, OnMemset memset, Allocate workspace) {
  on_launch = launch, on_memset = memset, allocate = workspace;
}

#define CEK_RUN(name, Params)                                                               \
  const char* name(const void* bytes) {                                                     \
    const cekernels::Params& p = *static_cast<const cekernels::Params*>(bytes);             \
    const size_t workspace = cekernels::cuda::workspace_bytes(p);                           \
    return cekernels::cuda::run(p, workspace > 0 ? allocate(workspace) : nullptr, nullptr); \
  }
CEK_RUN(run_linear, LinearForward)
CEK_RUN(run_linear_backward, LinearBackward)
CEK_RUN(run_loss, MaskedLoss)
CEK_RUN(run_loss_backward, MaskedLossBackward)
CEK_RUN(run_scale_gradient, ScaleGradient)
CEK_RUN(run_fill, FillMasked)
CEK_RUN(run_shapes, Shapes)
}
