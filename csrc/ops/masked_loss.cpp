// torch bindings of the masked losses and their gradient.
#include "common.h"

#ifdef CEK_CUDA
#include <map>
#include <mutex>
#include <utility>
#endif

namespace cekernels {
namespace {

// Operands are passed by reference: where a kernel cannot read one in place, it is replaced by a
// copy, which must outlive the kernel call.

// Requires the dtype and the sizes of the image in p.
template <class Params>
void mask_operand(const char* op, Tensor& mask, const Tensor& image, Params& p) {
  expect(op, "mask", mask, image, {p.batch, -1, p.height, p.width});
  if (is_bytes(mask)) {
    p.mask_dtype = DType::u8;
  } else {
    floating(op, "mask (unless bool or uint8)", mask);
    p.mask_dtype = p.dtype == DType::f64 ? DType::f64 : DType::f32;
    if (mask.scalar_type() != accumulator(p.dtype)) {
      Tensor weights = empty(op, "mask as weights", image, accumulator(p.dtype),
                             {mask.size(0), mask.size(1), mask.size(2), mask.size(3)});
      mask = torch::stable::copy_(weights, mask);
    }
  }
  mask = readable(op, "mask", mask);
  p.mask_channels = mask.size(1);
  CEK_CHECK(op, p.mask_channels == 1 || p.mask_channels == p.channels,
            "mask must have 1 channel or as many as the image");
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
void loss_operands(const char* op, Tensor& prediction, Tensor& target, Tensor& mask, int64_t power,
                   Params& p) {
  expect(op, "prediction", prediction, prediction, {-1, -1, -1, -1});
  p.dtype = floating(op, "prediction", prediction);
  p.batch = prediction.size(0), p.channels = prediction.size(1);
  p.height = prediction.size(2), p.width = prediction.size(3);
  expect(op, "target", target, prediction, {p.batch, p.channels, p.height, p.width});
  expect_type(op, "target", target, prediction.scalar_type());
  mask_operand(op, mask, prediction, p);
  CEK_CHECK(op, power == 1 || power == 2, "power must be 1 or 2");
  p.power = int32_t(power);
  prediction = readable(op, "prediction", prediction);
  target = readable(op, "target", target);
  p.prediction = planes(prediction), p.target = planes(target);
}

Normalize normalization(const char* op, const std::string& name) {
  if (name == "mask") return Normalize::mask;
  if (name == "all") return Normalize::all;
  if (name == "sum") return Normalize::sum;
  if (name == "none") return Normalize::none;
  fail(op, "normalize must be mask, all, sum or none");
}

#ifdef CEK_CUDA
// A counter that is 0 for a kernel on the current stream, which leaves it at 0: one for all launches
// on a device's default stream, which follow each other and are never captured into a graph. On other
// streams, whose memory may belong to a graph or whose handle to another stream later, launches get
// their own, which is cleared on the stream.
Tensor zero_counter(const char* op, const Tensor& on) {
  const auto make = [&] {
    Tensor counter = empty(op, "counter", on, ScalarType::Int, {1});
    return torch::stable::zero_(counter);
  };
  if (current_stream(on) != nullptr) return make();
  static std::mutex lock;
  // Never destroyed: at exit the CUDA context may be gone before it.
  static auto& counters = *new std::map<int32_t, Tensor>;
  const std::lock_guard<std::mutex> guard(lock);
  const int32_t device = on.get_device_index();
  const auto found = counters.find(device);
  return found != counters.end() ? found->second : counters.emplace(device, make()).first->second;
}
#endif

// Computes the loss and the scale and, if `gradient` is not null, the gradient.
std::tuple<Tensor, Tensor> make_loss(const char* op, Tensor& prediction, Tensor& target,
                                     Tensor& mask, const OptionalTensor& area, int64_t power,
                                     const std::string& normalize, OptionalTensor* gradient) {
  MaskedLoss p{};
  expect(op, "prediction", prediction, prediction, {-1, -1, -1, -1});
  if (gradient != nullptr) {
    p.channels_last = is_channels_last(prediction);
    *gradient = empty_as(op, "gradient", prediction, p.channels_last);
    p.grad = (*gradient)->mutable_data_ptr();
  }
  loss_operands(op, prediction, target, mask, power, p);
  p.normalize = normalization(op, normalize);
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
  Tensor loss = p.normalize == Normalize::none ? empty(op, "loss", prediction, type, {p.batch})
                                               : empty(op, "loss", prediction, type, {});
  Tensor scale = empty(op, "scale", prediction, type, {});
  p.loss = loss.mutable_data_ptr(), p.scale = scale.mutable_data_ptr();
#ifdef CEK_CUDA
  Tensor counter = zero_counter(op, prediction);
  p.counter = static_cast<uint32_t*>(counter.mutable_data_ptr());
#endif
  execute(prediction, p);
  return {loss, scale};
}

std::tuple<Tensor, Tensor> masked_loss(Tensor prediction, Tensor target, Tensor mask,
                                       OptionalTensor area, int64_t power, std::string normalize) {
  return make_loss("masked_loss", prediction, target, mask, area, power, normalize, nullptr);
}

#ifdef CEK_CUDA  // on the CPU one pass is no faster than two
std::tuple<Tensor, Tensor, Tensor> masked_loss_and_gradient(Tensor prediction, Tensor target,
                                                            Tensor mask, OptionalTensor area,
                                                            int64_t power, std::string normalize) {
  OptionalTensor gradient;
  auto [loss, scale] = make_loss("masked_loss_and_gradient", prediction, target, mask, area, power,
                                 normalize, &gradient);
  return {loss, scale, *gradient};
}

void scale_gradient(Tensor gradient, Tensor grad_loss, Tensor mask) {
  const char* op = "scale_gradient_";
  expect(op, "gradient", gradient, gradient, {-1, -1, -1, -1});
  ScaleGradient p{};
  p.channels_last = is_channels_last(gradient);
  CEK_CHECK(op, p.channels_last || gradient.is_contiguous(),
            "gradient must be contiguous or channels_last");
  p.dtype = floating(op, "gradient", gradient);
  p.batch = gradient.size(0), p.channels = gradient.size(1);
  p.height = gradient.size(2), p.width = gradient.size(3);
  mask_operand(op, mask, gradient, p);
  grad_loss_operand(op, grad_loss, gradient, p);
  if (gradient.numel() == 0) return;
  p.grad = gradient.mutable_data_ptr();
  execute(gradient, p);
}
#endif

Tensor masked_loss_backward(Tensor grad_loss, Tensor scale, Tensor prediction, Tensor target,
                            Tensor mask, int64_t power) {
  const char* op = "masked_loss_backward";
  MaskedLossBackward p{};
  expect(op, "prediction", prediction, prediction, {-1, -1, -1, -1});
  const Tensor given = prediction;
  const Result grad(op, "gradient", given);
  loss_operands(op, prediction, target, mask, power, p);
  const ScalarType type = accumulator(p.dtype);
  expect(op, "scale", scale, prediction, {});
  expect_type(op, "scale", scale, type);
  p.scale = scale.const_data_ptr();
  grad_loss_operand(op, grad_loss, prediction, p);
  p.grad = grad.made.mutable_data_ptr(), p.channels_last = grad.channels_last;
  if (grad.made.numel() > 0) execute(prediction, p);
  return grad.get();
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "masked_loss", &masked_loss);
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "masked_loss_backward", &masked_loss_backward);
#ifdef CEK_CUDA
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "masked_loss_and_gradient", &masked_loss_and_gradient);
  CEK_IMPLEMENT(m, "scale_gradient_", &scale_gradient);
#endif
}
