// Common parts of the torch bindings, which use LibTorch's stable ABI: argument checks, allocation
// of outputs, and kernel calls. Each .cpp file of this folder is compiled twice: for _C (CPU), and
// with CEK_CUDA for _C_cuda. The schemas are defined in Python (cekernels/_register.py).
//
// The public functions of the Python package give better error messages. The checks here make
// direct calls of torch.ops.cekernels memory-safe for any arguments.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "../params.h"
#ifdef CEK_CUDA
#include "../cuda/kernels.h"
#else
#include "../cpu/kernels.h"
#endif

// CEK_IMPLEMENT(m, "op", function) registers the kernel for all overloads of an op that this
// library implements. CEK_IMPLEMENT_DIFFERENTIABLE does the same for an op with an autograd
// formula.
#ifdef CEK_CUDA
#define CEK_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(cekernels, CUDA, m)
#define CEK_IMPLEMENT(m, op, function) m.impl(op ".cuda", TORCH_BOX(function))
#define CEK_IMPLEMENT_DIFFERENTIABLE(m, op, function) \
  CEK_IMPLEMENT(m, op, function);                     \
  m.impl(op ".cuda_no_grad", TORCH_BOX(function))
#else
#define CEK_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(cekernels, CPU, m)
#define CEK_IMPLEMENT(m, op, function) \
  m.impl(op, TORCH_BOX(function));     \
  m.impl(op ".cpp", TORCH_BOX(function))
#define CEK_IMPLEMENT_DIFFERENTIABLE(m, op, function) \
  CEK_IMPLEMENT(m, op, function);                     \
  m.impl(op ".no_grad", TORCH_BOX(function));         \
  m.impl(op ".cpp_no_grad", TORCH_BOX(function))
#endif

// torch's setting for float32 products, as a value of enum Products (cekernels/_precision.py).
extern "C" __attribute__((visibility("default"))) int64_t cekernels_float32_products();

namespace cekernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

[[noreturn]] inline void fail(const std::string& op, const std::string& what) {
  throw std::runtime_error("cekernels " + op + ": " + what);
}
#define CEK_CHECK(op, condition, what) \
  if (!(condition)) fail(op, what)

inline DType floating(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    default: fail(op, std::string(name) + " must be float16, bfloat16, float32 or float64");
  }
}

inline bool is_bytes(const Tensor& mask) {
  const ScalarType type = mask.scalar_type();
  return type == ScalarType::Bool || type == ScalarType::Byte;
}

inline int32_t element_size(const char* op, const char* name, const Tensor& t) {
  const size_t size = t.element_size();
  CEK_CHECK(op, size == 1 || size == 2 || size == 4 || size == 8,
            std::string(name) + " must have elements of 1, 2, 4 or 8 bytes");
  return int32_t(size);
}

inline ScalarType accumulator(DType dtype) {
  return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
}

inline void expect_device(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  const std::string subject = name;
#ifdef CEK_CUDA
  CEK_CHECK(op, t.is_cuda(), subject + " must be on a CUDA device");
#else
  CEK_CHECK(op, t.is_cpu(), subject + " must be on the CPU");
#endif
  CEK_CHECK(op, t.get_device_index() == like.get_device_index(),
            subject + " must be on the device of the first argument");
}

// Checks the device and the shape of an operand; a size of -1 matches any size.
inline void expect(const char* op, const char* name, const Tensor& t, const Tensor& like,
                   std::initializer_list<int64_t> sizes) {
  const std::string subject = name;
  expect_device(op, name, t, like);
  CEK_CHECK(op, t.dim() == int64_t(sizes.size()),
            subject + " must have " + std::to_string(sizes.size()) + " dimensions, has " +
                std::to_string(t.dim()));
  int64_t d = 0;
  for (const int64_t size : sizes) {
    CEK_CHECK(op, size < 0 || t.size(d) == size,
              subject + " must have size " + std::to_string(size) + " in dimension " +
                  std::to_string(d) + ", has " + std::to_string(t.size(d)));
    ++d;
  }
}

inline void expect_type(const char* op, const char* name, const Tensor& t, ScalarType type) {
  CEK_CHECK(op, t.scalar_type() == type, std::string(name) + " has the wrong dtype");
}

// Checks a fill value: one number per channel of the image.
inline void expect_value(const char* op, const Tensor& value, const Tensor& image) {
  expect(op, "value", value, image, {image.size(1)});
  expect_type(op, "value", value, image.scalar_type());
}

// An uninitialised tensor on the device of `like`, whose dimensions lie in memory in this order, the
// last one innermost; `name` is for the error if there is not enough memory.
inline Tensor empty(const char* op, const char* name, const Tensor& like, ScalarType type,
                    const int64_t* sizes, const int64_t* order, size_t dims, size_t element_size) {
  int64_t strides[4] = {1, 1, 1, 1};
  int64_t running = 1;
  bool countable = true;
  for (size_t i = dims; i-- > 0;) {
    const int64_t d = order[i];
    strides[d] = running;
    const int64_t size = sizes[d] > 1 ? sizes[d] : 1;
    countable = countable && !__builtin_mul_overflow(running, size, &running);
  }
  int64_t bytes = 0;
  countable = countable && !__builtin_mul_overflow(running, int64_t(element_size), &bytes);
  const auto describe = [&] {
    std::string text = std::string(name) + " of shape (";
    for (size_t d = 0; d < dims; ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
    return text + (dims == 1 ? ",)" : ")");
  };
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error(std::string(op) + ": " + what);
  };
  if (!countable) refuse(describe() + " would have 2^63 bytes or more");
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  const auto error = aoti_torch_empty_strided(int64_t(dims), sizes, strides, dtype,
#ifdef CEK_CUDA
                                              aoti_torch_device_type_cuda(),
#else
                                              aoti_torch_device_type_cpu(),
#endif
                                              like.get_device_index(), &handle);
  if (error != TORCH_SUCCESS) {
    refuse("out of memory: " + describe() + " needs " + std::to_string(bytes) + " bytes");
  }
  return Tensor(handle);
}

inline size_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long: return 8;
    case ScalarType::Float:
    case ScalarType::Int: return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Short: return 2;
    default: return 1;
  }
}

inline Tensor empty(const char* op, const char* name, const Tensor& like, ScalarType type,
                    std::initializer_list<int64_t> sizes, const int64_t* order) {
  const size_t bytes = type == like.scalar_type() ? like.element_size() : size_of(type);
  return empty(op, name, like, type, sizes.begin(), order, sizes.size(), bytes);
}

constexpr int64_t kContiguous[4] = {0, 1, 2, 3};

// An uninitialised contiguous tensor.
inline Tensor empty(const char* op, const char* name, const Tensor& like, ScalarType type,
                    std::initializer_list<int64_t> sizes) {
  return empty(op, name, like, type, sizes, kContiguous);
}

// Whether the strides are those of (B, H, W, C) or (B, C, H, W), where dimensions of one element
// do not matter.
inline bool is_dense(const Tensor& t, bool channels_last) {
  const int64_t order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t expected = 1;
  for (const int64_t d : order[channels_last]) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// Whether results take the layout (B, H, W, C) from this operand; else they are contiguous.
inline bool is_channels_last(const Tensor& t) { return !is_dense(t, false) && is_dense(t, true); }

// An uninitialised tensor of the shape and dtype of `t`, in one of the two layouts.
inline Tensor empty_as(const char* op, const char* name, const Tensor& t, bool channels_last) {
  constexpr int64_t last[4] = {0, 2, 3, 1};
  return empty(op, name, t, t.scalar_type(), {t.size(0), t.size(1), t.size(2), t.size(3)},
               channels_last ? last : kContiguous);
}

// A contiguous copy.
inline Tensor copy(const char* op, const char* name, const Tensor& t) {
  int64_t sizes[4] = {};
  for (int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d);
  Tensor fresh = empty(op, name, t, t.scalar_type(), sizes, kContiguous, size_t(t.dim()),
                       t.element_size());
  return torch::stable::copy_(fresh, t);
}

// The operand itself if its last dimension is contiguous, else a contiguous copy.
inline Tensor dense(const char* op, const char* name, const Tensor& t) {
  const int64_t d = t.dim();
  const bool is = d == 0 || t.numel() == 0 || t.size(d - 1) <= 1 || t.stride(d - 1) == 1;
  return is ? t : copy(op, name, t);
}

// An image or a mask (B, C, H, W) that the kernels can read: on a GPU any, on the CPU a copy where
// the last dimension is not contiguous.
inline Tensor readable(const char* op, const char* name, const Tensor& t) {
#ifdef CEK_CUDA
  (void)op, (void)name;
  return t;
#else
  return dense(op, name, t);
#endif
}

// A result for an operand of the shape, dtype and layout of `like`. On the CPU the kernels write
// contiguous results only: `made` is what they write, and the result is a copy of it.
struct Result {
  const char *op, *name;
  const Tensor& like;
  bool channels_last;
  Tensor made;

  Result(const char* op, const char* name, const Tensor& like)
      : op(op),
        name(name),
        like(like),
        channels_last(is_channels_last(like)),
        made(empty_as(op, name, like, written_in_place() && channels_last)) {}
  static constexpr bool written_in_place() {
#ifdef CEK_CUDA
    return true;
#else
    return false;
#endif
  }
  Tensor get() const {
    if (written_in_place() || !channels_last) return made;
    Tensor result = empty_as(op, name, like, true);
    return torch::stable::copy_(result, made);
  }
};

// The operand itself if it is contiguous, else a copy.
inline Tensor contiguous(const char* op, const char* name, const Tensor& t) {
  return t.is_contiguous() ? t : copy(op, name, t);
}

#ifdef CEK_CUDA
inline void* current_stream(const Tensor& on) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return stream;
}
#endif

template <class Params>
inline void execute(const Tensor& on, const Params& p) {
#ifdef CEK_CUDA
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  void* stream = current_stream(on);
  const int64_t bytes = int64_t(cuda::workspace_bytes(p));
  std::optional<Tensor> workspace;
  if (bytes > 0) workspace = empty("kernel", "working memory", on, ScalarType::Byte, {bytes});
  const char* error = cuda::run(p, bytes > 0 ? workspace->mutable_data_ptr() : nullptr, stream);
  if (error != nullptr) throw std::runtime_error(std::string("cekernels: CUDA error: ") + error);
#else
  (void)on;
  cpu::dispatch(p);
#endif
}

inline Planes planes(const Tensor& t) {
  return {t.const_data_ptr(), t.size(0) == 1 ? 0 : t.stride(0), t.size(1) == 1 ? 0 : t.stride(1),
          t.size(2) == 1 ? t.size(3) : t.stride(2), t.size(3) == 1 ? 1 : t.stride(3)};
}

}  // namespace
}  // namespace cekernels
