// The ops as torch sees them, through the stable ABI of LibTorch: checks, outputs, and the kernels'
// parameters. Compiled twice: for _C (CPU), and with CEK_CUDA for _C_cuda.
//
// The public functions of the Python package check with better words. The checks here are for who
// calls the ops directly: whatever the arguments, memory is safe.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "params.h"
#ifdef CEK_CUDA
#include "cuda/kernels.h"
#define CEK_NAMESPACE cekernels_cuda
#define CEK_KEY CUDA
#else
#include "cpu/kernels.h"
#define CEK_NAMESPACE cekernels_cpp
#define CEK_KEY CPU
#endif

namespace cekernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

[[noreturn]] void fail(const std::string& op, const std::string& what) {
  throw std::runtime_error("cekernels " + op + ": " + what);
}
#define CEK_CHECK(op, condition, what) \
  if (!(condition)) fail(op, what)

DType floating(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    default: fail(op, std::string(name) + " must be float16, bfloat16, float32 or float64");
  }
}

bool is_bytes(const Tensor& mask) {
  const ScalarType type = mask.scalar_type();
  return type == ScalarType::Bool || type == ScalarType::Byte;
}

ScalarType accumulator(DType dtype) {
  return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
}

void expect_device(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  const std::string subject = name;
#ifdef CEK_CUDA
  CEK_CHECK(op, t.is_cuda(), subject + " must be on a CUDA device");
#else
  CEK_CHECK(op, t.is_cpu(), subject + " must be on the CPU");
#endif
  CEK_CHECK(op, t.get_device_index() == like.get_device_index(),
            subject + " is on another device than the first argument");
}

// Shape, device and layout of an operand; sizes of -1 are free.
void expect(const char* op, const char* name, const Tensor& t, const Tensor& like,
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
  CEK_CHECK(op, d == 0 || t.numel() == 0 || t.size(d - 1) <= 1 || t.stride(d - 1) == 1,
            subject + " must be dense in its last dimension");
}

void expect_type(const char* op, const char* name, const Tensor& t, ScalarType type) {
  CEK_CHECK(op, t.scalar_type() == type, std::string(name) + " has the wrong dtype");
}

void expect_contiguous(const char* op, const char* name, const Tensor& t) {
  CEK_CHECK(op, t.is_contiguous(), std::string(name) + " must be contiguous");
}

// An uninitialised contiguous tensor on the device of `like`.
Tensor empty(const Tensor& like, ScalarType type, std::initializer_list<int64_t> sizes) {
  int64_t strides[4] = {1, 1, 1, 1};
  int64_t running = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = running;
    const int64_t size = sizes.begin()[d] > 1 ? sizes.begin()[d] : 1;
    if (__builtin_mul_overflow(running, size, &running)) fail("output", "has too many elements");
  }
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.begin(), strides, dtype,
#ifdef CEK_CUDA
      aoti_torch_device_type_cuda(),
#else
      aoti_torch_device_type_cpu(),
#endif
      like.get_device_index(), &handle));
  return Tensor(handle);
}

template <class Params>
void execute(const Tensor& on, const Params& p) {
#ifdef CEK_CUDA
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  const int64_t bytes = int64_t(cuda::workspace_bytes(p));
  std::optional<Tensor> workspace;
  if (bytes > 0) workspace = empty(on, ScalarType::Byte, {bytes});
  const char* error = cuda::run(p, bytes > 0 ? workspace->mutable_data_ptr() : nullptr, stream);
  if (error != nullptr) throw std::runtime_error(std::string("cekernels: CUDA error: ") + error);
#else
  (void)on;
  cpu::dispatch(p);
#endif
}

#ifndef CEK_CUDA
template <>
void execute(const Tensor&, const Shapes& p) {
  cpu::run(p);
}
#endif

Planes planes(const Tensor& t) {
  return {t.const_data_ptr(), t.size(0) == 1 ? 0 : t.stride(0), t.size(1) == 1 ? 0 : t.stride(1),
          t.size(2) == 1 ? t.size(3) : t.stride(2)};
}

// --- channel-wise linear ------------------------------------------------------------------------

Products checked_products(const char* op, int64_t products) {
  CEK_CHECK(op, products >= 0 && products <= 2, "products must be 0 to 2");
  return Products(products);
}

Tensor channelwise_linear(Tensor input, Tensor weight, OptionalTensor bias, bool relu,
                          int64_t products) {
  const char* op = "channelwise_linear";
  expect(op, "input", input, input, {-1, -1, -1});
  expect(op, "weight", weight, input, {input.size(1), -1, input.size(2)});
  expect_type(op, "weight", weight, input.scalar_type());
  LinearForward p{};
  p.dtype = floating(op, "input", input);
  p.batch = input.size(0), p.channels = input.size(1), p.n_in = input.size(2);
  p.n_out = weight.size(1);
  p.input = input.const_data_ptr();
  p.input_batch = input.stride(0), p.input_channel = input.stride(1);
  p.weight = weight.const_data_ptr();
  p.weight_channel = weight.stride(0), p.weight_row = weight.stride(1);
  if (bias.has_value()) {
    expect(op, "bias", *bias, input, {p.channels, p.n_out});
    expect_type(op, "bias", *bias, input.scalar_type());
    p.bias = bias->const_data_ptr(), p.bias_channel = bias->stride(0);
  }
  p.relu = relu;
  p.products = checked_products(op, products);
  Tensor output = empty(input, input.scalar_type(), {p.batch, p.channels, p.n_out});
  p.output = output.mutable_data_ptr();
  if (output.numel() > 0) execute(input, p);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> channelwise_linear_backward(
    Tensor grad_output, Tensor input, Tensor weight, OptionalTensor output, bool needs_input,
    bool needs_weight, bool needs_bias, int64_t products) {
  const char* op = "channelwise_linear_backward";
  expect(op, "grad_output", grad_output, grad_output, {-1, -1, -1});
  LinearBackward p{};
  p.dtype = floating(op, "grad_output", grad_output);
  p.batch = grad_output.size(0), p.channels = grad_output.size(1), p.n_out = grad_output.size(2);
  expect(op, "input", input, grad_output, {p.batch, p.channels, -1});
  p.n_in = input.size(2);
  expect(op, "weight", weight, grad_output, {p.channels, p.n_out, p.n_in});
  const ScalarType type = grad_output.scalar_type();
  expect_type(op, "input", input, type);
  expect_type(op, "weight", weight, type);
  p.grad_output = grad_output.const_data_ptr();
  p.grad_batch = grad_output.stride(0), p.grad_channel = grad_output.stride(1);
  p.input = input.const_data_ptr();
  p.input_batch = input.stride(0), p.input_channel = input.stride(1);
  p.weight = weight.const_data_ptr();
  p.weight_channel = weight.stride(0), p.weight_row = weight.stride(1);
  if (output.has_value()) {
    expect(op, "output", *output, grad_output, {p.batch, p.channels, p.n_out});
    expect_type(op, "output", *output, type);
    p.output = output->const_data_ptr();
    p.output_batch = output->stride(0), p.output_channel = output->stride(1);
  }
  Tensor grad_input = needs_input ? empty(input, type, {p.batch, p.channels, p.n_in})
                                  : empty(input, type, {0});
  Tensor grad_weight = needs_weight ? empty(input, type, {p.channels, p.n_out, p.n_in})
                                    : empty(input, type, {0});
  Tensor grad_bias = needs_bias ? empty(input, type, {p.channels, p.n_out})
                                : empty(input, type, {0});
  p.grad_input = needs_input ? grad_input.mutable_data_ptr() : nullptr;
  p.grad_weight = needs_weight ? grad_weight.mutable_data_ptr() : nullptr;
  p.grad_bias = needs_bias ? grad_bias.mutable_data_ptr() : nullptr;
  p.products = checked_products(op, products);
  if (grad_input.numel() + grad_weight.numel() + grad_bias.numel() > 0) execute(grad_output, p);
  return {grad_input, grad_weight, grad_bias};
}

// --- masked loss --------------------------------------------------------------------------------

// Once dtype and sizes are those of the image.
template <class Params>
void mask_operand(const char* op, const Tensor& mask, const Tensor& image, Params& p) {
  expect(op, "mask", mask, image, {p.batch, -1, p.height, p.width});
  p.mask_dtype = is_bytes(mask) ? DType::u8 : p.dtype == DType::f64 ? DType::f64 : DType::f32;
  CEK_CHECK(op, is_bytes(mask) || mask.scalar_type() == accumulator(p.dtype),
            "mask must be bool, uint8, or of the dtype of the sums");
  p.mask_channels = mask.size(1);
  CEK_CHECK(op, p.mask_channels == 1 || p.mask_channels == p.channels,
            "mask must have 1 channel or those of the image");
  p.mask = planes(mask);
}

template <class Params>
void grad_loss_operand(const char* op, const Tensor& grad_loss, const Tensor& image, Params& p) {
  expect_type(op, "grad_loss", grad_loss, accumulator(p.dtype));
  if (grad_loss.dim() == 1) {
    CEK_CHECK(op, grad_loss.size(0) == p.batch, "grad_loss must have shape () or (B,)");
    expect_device(op, "grad_loss", grad_loss, image);
    p.grad_loss_stride = grad_loss.stride(0);
  } else {
    expect(op, "grad_loss", grad_loss, image, {});
  }
  p.grad_loss = grad_loss.const_data_ptr();
}

template <class Params>
void loss_operands(const char* op, const Tensor& prediction, const Tensor& target,
                   const Tensor& mask, int64_t power, Params& p) {
  expect(op, "prediction", prediction, prediction, {-1, -1, -1, -1});
  p.dtype = floating(op, "prediction", prediction);
  p.batch = prediction.size(0), p.channels = prediction.size(1);
  p.height = prediction.size(2), p.width = prediction.size(3);
  expect(op, "target", target, prediction, {p.batch, p.channels, p.height, p.width});
  expect_type(op, "target", target, prediction.scalar_type());
  mask_operand(op, mask, prediction, p);
  CEK_CHECK(op, power == 1 || power == 2, "power must be 1 or 2");
  p.power = int32_t(power);
  p.prediction = planes(prediction), p.target = planes(target);
}

// The loss and the scale; with `gradient`, that too.
std::tuple<Tensor, Tensor> make_loss(const char* op, const Tensor& prediction, const Tensor& target,
                                     const Tensor& mask, const OptionalTensor& area, int64_t power,
                                     int64_t normalize, OptionalTensor* gradient) {
  MaskedLoss p{};
  loss_operands(op, prediction, target, mask, power, p);
  CEK_CHECK(op, normalize >= 0 && normalize <= 3, "normalize must be 0 to 3");
  p.normalize = Normalize(normalize);
  if (area.has_value()) {
    CEK_CHECK(op, area->dim() == 1 && area->size(0) == p.batch, "area must have shape (B,)");
    expect_device(op, "area", *area, prediction);
    switch (area->scalar_type()) {
      case ScalarType::Long: p.area_dtype = DType::u8; break;
      case ScalarType::Float: p.area_dtype = DType::f32; break;
      case ScalarType::Double: p.area_dtype = DType::f64; break;
      default: fail(op, "area must be int64, float32 or float64");
    }
    p.area = area->const_data_ptr(), p.area_stride = area->stride(0);
  }
  const ScalarType type = accumulator(p.dtype);
  Tensor loss = p.normalize == Normalize::none ? empty(prediction, type, {p.batch})
                                               : empty(prediction, type, {});
  Tensor scale = empty(prediction, type, {});
  p.loss = loss.mutable_data_ptr(), p.scale = scale.mutable_data_ptr();
  if (gradient != nullptr) {
    CEK_CHECK(op, area.has_value() || p.normalize != Normalize::mask,
              "area must be given where it normalises");
    *gradient =
        empty(prediction, prediction.scalar_type(), {p.batch, p.channels, p.height, p.width});
    p.grad = (*gradient)->mutable_data_ptr();
  }
  execute(prediction, p);
  return {loss, scale};
}

std::tuple<Tensor, Tensor> masked_loss(Tensor prediction, Tensor target, Tensor mask,
                                       OptionalTensor area, int64_t power, int64_t normalize) {
  return make_loss("masked_loss", prediction, target, mask, area, power, normalize, nullptr);
}

#ifdef CEK_CUDA  // on the CPU one pass is no faster than two
std::tuple<Tensor, Tensor, Tensor> masked_loss_and_gradient(Tensor prediction, Tensor target,
                                                            Tensor mask, OptionalTensor area,
                                                            int64_t power, int64_t normalize) {
  OptionalTensor gradient;
  auto [loss, scale] = make_loss("masked_loss_and_gradient", prediction, target, mask, area, power,
                                 normalize, &gradient);
  return {loss, scale, *gradient};
}

void scale_gradient(Tensor grad, Tensor grad_loss, Tensor mask) {
  const char* op = "scale_gradient_";
  expect(op, "grad", grad, grad, {-1, -1, -1, -1});
  expect_contiguous(op, "grad", grad);
  ScaleGradient p{};
  p.dtype = floating(op, "grad", grad);
  p.batch = grad.size(0), p.channels = grad.size(1);
  p.height = grad.size(2), p.width = grad.size(3);
  mask_operand(op, mask, grad, p);
  grad_loss_operand(op, grad_loss, grad, p);
  if (grad.numel() == 0) return;
  p.grad = grad.mutable_data_ptr();
  execute(grad, p);
}
#endif

Tensor masked_loss_backward(Tensor grad_loss, Tensor scale, Tensor prediction, Tensor target,
                            Tensor mask, int64_t power) {
  const char* op = "masked_loss_backward";
  MaskedLossBackward p{};
  loss_operands(op, prediction, target, mask, power, p);
  const ScalarType type = accumulator(p.dtype);
  expect(op, "scale", scale, prediction, {});
  expect_type(op, "scale", scale, type);
  p.scale = scale.const_data_ptr();
  grad_loss_operand(op, grad_loss, prediction, p);
  Tensor grad = empty(prediction, prediction.scalar_type(), {p.batch, p.channels, p.height, p.width});
  p.grad = grad.mutable_data_ptr();
  if (grad.numel() > 0) execute(prediction, p);
  return grad;
}

// --- filling and rasterization --------------------------------------------------------------------

int32_t element_size(const char* op, const char* name, const Tensor& t) {
  const size_t size = t.element_size();
  CEK_CHECK(op, size == 1 || size == 2 || size == 4 || size == 8,
            std::string(name) + " must have elements of 1, 2, 4 or 8 bytes");
  return int32_t(size);
}

void expect_value(const char* op, const Tensor& value, const Tensor& image) {
  expect(op, "value", value, image, {image.size(1)});
  expect_type(op, "value", value, image.scalar_type());
}

Tensor fill_masked(Tensor image, Tensor mask, Tensor value) {
  const char* op = "fill_masked";
  expect(op, "image", image, image, {-1, -1, -1, -1});
  FillMasked p{};
  p.batch = image.size(0), p.channels = image.size(1);
  p.height = image.size(2), p.width = image.size(3);
  expect(op, "mask", mask, image, {p.batch, -1, p.height, p.width});
  CEK_CHECK(op, mask.size(1) == 1 || mask.size(1) == p.channels,
            "mask must have 1 channel or those of image");
  expect_value(op, value, image);
  p.element_size = element_size(op, "image", image);
  p.mask_element_size = element_size(op, "mask", mask);
  p.mask_floating = !is_bytes(mask);
  if (p.mask_floating) floating(op, "mask (unless bool or uint8)", mask);
  p.image = planes(image), p.mask = planes(mask), p.value = value.const_data_ptr();
  Tensor output = empty(image, image.scalar_type(), {p.batch, p.channels, p.height, p.width});
  p.output = output.mutable_data_ptr();
  if (output.numel() > 0) execute(image, p);
  return output;
}

// The offsets, and the masks and areas that are made.
std::tuple<Tensor, Tensor> rasterize(const char* op, const Tensor& vertices,
                                     const OptionalTensor& contour_offsets,
                                     const Tensor& sample_offsets, bool even_odd, Shapes& p) {
  p.boxes = !contour_offsets.has_value();
  p.even_odd = even_odd;
  expect(op, p.boxes ? "boxes" : "vertices", vertices, vertices, {-1, p.boxes ? 4 : 2});
  expect_type(op, p.boxes ? "boxes" : "vertices", vertices, ScalarType::Int);
  expect_contiguous(op, p.boxes ? "boxes" : "vertices", vertices);
  p.vertices = static_cast<const int32_t*>(vertices.const_data_ptr());
  p.vertex_count = vertices.size(0);
  if (!p.boxes) {
    expect(op, "contour_offsets", *contour_offsets, vertices, {-1});
    expect_type(op, "contour_offsets", *contour_offsets, ScalarType::Long);
    CEK_CHECK(op, contour_offsets->size(0) >= 1, "contour_offsets must not be empty");
    p.contour_offsets = static_cast<const int64_t*>(contour_offsets->const_data_ptr());
    p.contour_count = contour_offsets->size(0) - 1;
  }
  expect(op, "sample_offsets", sample_offsets, vertices, {-1});
  expect_type(op, "sample_offsets", sample_offsets, ScalarType::Long);
  CEK_CHECK(op, sample_offsets.size(0) >= 1, "sample_offsets must not be empty");
  p.sample_offsets = static_cast<const int64_t*>(sample_offsets.const_data_ptr());
  p.batch = sample_offsets.size(0) - 1;
  CEK_CHECK(op, p.height >= 0 && p.width >= 0, "height and width must not be negative");
  CEK_CHECK(op, p.height <= INT32_MAX && p.width <= INT32_MAX, "height and width must fit int32");
  Tensor mask = empty(vertices, ScalarType::Bool, {p.batch, 1, p.height, p.width});
  Tensor area = empty(vertices, ScalarType::Long, {p.batch});
  p.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  p.area = static_cast<int64_t*>(area.mutable_data_ptr());
  return {mask, area};
}

std::tuple<Tensor, Tensor> rasterize_shapes(Tensor vertices, OptionalTensor contour_offsets,
                                            Tensor sample_offsets, int64_t height, int64_t width,
                                            bool even_odd) {
  Shapes p{};
  p.height = height, p.width = width;
  auto result = rasterize("rasterize", vertices, contour_offsets, sample_offsets, even_odd, p);
  if (p.batch > 0) execute(vertices, p);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> fill_shapes(Tensor image, Tensor value, Tensor vertices,
                                               OptionalTensor contour_offsets,
                                               Tensor sample_offsets, bool even_odd) {
  const char* op = "fill";
  Shapes p{};
  expect(op, "image", image, vertices, {sample_offsets.numel() - 1, -1, -1, -1});
  p.channels = image.size(1), p.height = image.size(2), p.width = image.size(3);
  auto [mask, area] = rasterize(op, vertices, contour_offsets, sample_offsets, even_odd, p);
  expect_value(op, value, image);
  p.element_size = element_size(op, "image", image);
  p.image = planes(image), p.value = value.const_data_ptr();
  Tensor output = empty(image, image.scalar_type(), {p.batch, p.channels, p.height, p.width});
  p.output = output.mutable_data_ptr();
  if (p.batch > 0) execute(vertices, p);
  return {output, mask, area};
}

}  // namespace
}  // namespace cekernels

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
#endif

// Which instruction set the CPU kernels run with, for `python -m cekernels.info`.
extern "C" __attribute__((visibility("default"))) const char* cekernels_instruction_set() {
#ifdef CEK_CUDA
  return "cuda";
#else
  return cekernels::cpu::instruction_set();
#endif
}

// Expand the arguments before the macros of torch paste them.
#define CEK_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define CEK_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

CEK_LIBRARY(CEK_NAMESPACE, m) {
  m.def(
      "channelwise_linear(Tensor input, Tensor weight, Tensor? bias, bool relu,"
      " int products=0) -> Tensor");
  m.def(
      "channelwise_linear_backward(Tensor grad_output, Tensor input, Tensor weight,"
      " Tensor? output, bool needs_input, bool needs_weight, bool needs_bias,"
      " int products=0) -> (Tensor, Tensor, Tensor)");
  m.def(
      "masked_loss(Tensor prediction, Tensor target, Tensor mask, Tensor? area, int power,"
      " int normalize) -> (Tensor, Tensor)");
#ifdef CEK_CUDA
  m.def(
      "masked_loss_and_gradient(Tensor prediction, Tensor target, Tensor mask, Tensor? area,"
      " int power, int normalize) -> (Tensor, Tensor, Tensor)");
  m.def("scale_gradient_(Tensor(a!) grad, Tensor grad_loss, Tensor mask) -> ()");
#endif
  m.def(
      "masked_loss_backward(Tensor grad_loss, Tensor scale, Tensor prediction, Tensor target,"
      " Tensor mask, int power) -> Tensor");
  m.def("fill_masked(Tensor image, Tensor mask, Tensor value) -> Tensor");
  m.def(
      "rasterize(Tensor vertices, Tensor? contour_offsets, Tensor sample_offsets, int height,"
      " int width, bool even_odd) -> (Tensor, Tensor)");
  m.def(
      "fill(Tensor image, Tensor value, Tensor vertices, Tensor? contour_offsets,"
      " Tensor sample_offsets, bool even_odd) -> (Tensor, Tensor, Tensor)");
}

CEK_LIBRARY_IMPL(CEK_NAMESPACE, CEK_KEY, m) {
  m.impl("channelwise_linear", TORCH_BOX(&cekernels::channelwise_linear));
  m.impl("channelwise_linear_backward", TORCH_BOX(&cekernels::channelwise_linear_backward));
  m.impl("masked_loss", TORCH_BOX(&cekernels::masked_loss));
#ifdef CEK_CUDA
  m.impl("masked_loss_and_gradient", TORCH_BOX(&cekernels::masked_loss_and_gradient));
  m.impl("scale_gradient_", TORCH_BOX(&cekernels::scale_gradient));
#endif
  m.impl("masked_loss_backward", TORCH_BOX(&cekernels::masked_loss_backward));
  m.impl("fill_masked", TORCH_BOX(&cekernels::fill_masked));
  m.impl("rasterize", TORCH_BOX(&cekernels::rasterize_shapes));
  m.impl("fill", TORCH_BOX(&cekernels::fill_shapes));
}
