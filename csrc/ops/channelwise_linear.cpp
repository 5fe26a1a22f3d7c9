// torch bindings of channelwise_linear and channelwise_linear_backward.
#ifdef CEK_CUDA
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#endif

#include "common.h"

namespace cekernels {
namespace {

constexpr const char* kOp = "channelwise_linear";

// In place of a gradient that is not needed.
Tensor none(const Tensor& like) { return empty(kOp, "gradient", like, like.scalar_type(), {0}); }

// --- large maps: torch's batched product ---------------------------------------------------------

// True if torch's batched product is faster than the kernel, by the number of weights per channel.
// CPU: measured on an AMD EPYC with AVX-512; without its instructions for bfloat16 the kernel widens
// it, where torch may have other ways. CUDA: such maps are limited by arithmetic, for which cuBLAS uses tensor cores; not
// measured yet.
bool is_large(const Tensor& weight, bool backward) {
  const int64_t weights = weight.size(1) * weight.size(2);
#ifdef CEK_CUDA
  (void)backward;
  return weights >= 256 * 256;
#else
  const bool widened = weight.scalar_type() == ScalarType::BFloat16 && !cpu::has_bf16_products();
  return weights > (widened && !backward ? 48 * 48 : 256 * 256);
#endif
}

#ifdef CEK_CUDA
#define CEK_SHIM(name) aoti_torch_cuda_##name
#else
#define CEK_SHIM(name) aoti_torch_cpu_##name
#endif

template <class... Operands>
Tensor call(const char* name, const char* overload, const Operands&... operands) {
  StableIValue stack[] = {torch::stable::detail::from(operands)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A contiguous copy: autograd does not allow in-place changes of an output that is a view.
Tensor own(const Tensor& result) { return copy(kOp, "output", result); }

// a @ b per channel. These shim functions ignore autocast, unlike calls through the dispatcher.
Tensor batched_product(const Tensor& a, const Tensor& b) {
  Tensor product = empty(kOp, "product", a, a.scalar_type(), {a.size(0), a.size(1), b.size(2)});
  STABLE_TORCH_ERROR_CODE_CHECK(CEK_SHIM(bmm_out)(product.get(), a.get(), b.get()));
  return product;
}

Tensor by_channel(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

Tensor large_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     bool relu) {
  const Tensor x = by_channel(input), w = torch::stable::transpose(weight, 1, 2);
  Tensor product = empty(kOp, "product", input, input.scalar_type(),
                         {x.size(0), x.size(1), w.size(2)});
  if (bias.has_value()) {
    const Tensor row = torch::stable::unsqueeze(*bias, 1);
    STABLE_TORCH_ERROR_CODE_CHECK(
        CEK_SHIM(baddbmm_out)(product.get(), row.get(), x.get(), w.get(), 1, 1));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(CEK_SHIM(bmm_out)(product.get(), x.get(), w.get()));
  }
  Tensor output = own(by_channel(product));
  return relu ? call("aten::relu_", "", output) : output;
}

std::tuple<Tensor, Tensor, Tensor> large_backward(const Tensor& grad_output, const Tensor& input,
                                                  const Tensor& weight,
                                                  const OptionalTensor& output, bool needs_input,
                                                  bool needs_weight, bool needs_bias) {
  Tensor grad = grad_output;
  if (output.has_value()) {
    const Tensor zero = torch::stable::new_zeros(grad_output, {});
    grad = call("aten::where", "self", call("aten::gt", "Tensor", *output, zero), grad, zero);
  }
  const ScalarType type = grad.scalar_type();
  const Tensor g = by_channel(grad);
  Tensor grad_input = needs_input ? own(by_channel(batched_product(g, weight))) : none(grad);
  Tensor grad_weight = needs_weight
                           ? batched_product(torch::stable::transpose(g, 1, 2), by_channel(input))
                           : none(grad);
  Tensor grad_bias = none(grad);
  if (needs_bias) {
    grad_bias = empty(kOp, "gradient of bias", grad, type, {weight.size(0), weight.size(1)});
    const int64_t batch = 0;
    torch::stable::sum_out(grad_bias, grad, torch::headeronly::IntHeaderOnlyArrayRef(&batch, 1));
  }
  return {grad_input, grad_weight, grad_bias};
}

// --- small maps: kernels of this package ---------------------------------------------------------

// torch's setting for float32 products, read through Python because the stable ABI lacks it.
Products float32_products(DType dtype) {
#ifdef CEK_CUDA
  if (dtype == DType::f32) return Products(cekernels_float32_products());
#else
  (void)dtype;  // the CPU kernels always use full float32
#endif
  return Products::ieee;
}

Tensor channelwise_linear(Tensor input, Tensor weight, OptionalTensor bias, bool relu) {
  const char* op = "channelwise_linear";
  expect(op, "input", input, input, {-1, -1, -1});
  expect(op, "weight", weight, input, {input.size(1), -1, input.size(2)});
  expect_type(op, "weight", weight, input.scalar_type());
  if (bias.has_value()) {
    expect(op, "bias", *bias, input, {input.size(1), weight.size(1)});
    expect_type(op, "bias", *bias, input.scalar_type());
  }
  floating(op, "input", input);
  if (is_large(weight, false)) return large_forward(input, weight, bias, relu);
  input = dense(op, "input", input);
  weight = dense(op, "weight", weight);
  LinearForward p{};
  p.dtype = floating(op, "input", input);
  p.batch = input.size(0), p.channels = input.size(1), p.n_in = input.size(2);
  p.n_out = weight.size(1);
  p.input = input.const_data_ptr();
  p.input_batch = input.stride(0), p.input_channel = input.stride(1);
  p.weight = weight.const_data_ptr();
  p.weight_channel = weight.stride(0), p.weight_row = weight.stride(1);
  if (bias.has_value()) {
    bias = dense(op, "bias", *bias);
    p.bias = bias->const_data_ptr(), p.bias_channel = bias->stride(0);
  }
  p.relu = relu;
  p.products = float32_products(p.dtype);
  Tensor output = empty(op, "output", input, input.scalar_type(), {p.batch, p.channels, p.n_out});
  p.output = output.mutable_data_ptr();
  if (output.numel() > 0) execute(input, p);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> channelwise_linear_backward(Tensor grad_output, Tensor input,
                                                               Tensor weight, OptionalTensor output,
                                                               bool needs_input, bool needs_weight,
                                                               bool needs_bias) {
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
  if (output.has_value()) {
    expect(op, "output", *output, grad_output, {p.batch, p.channels, p.n_out});
    expect_type(op, "output", *output, type);
  }
  if (is_large(weight, true)) {
    return large_backward(grad_output, input, weight, output, needs_input, needs_weight,
                          needs_bias);
  }
  grad_output = dense(op, "grad_output", grad_output);
  input = dense(op, "input", input);
  weight = dense(op, "weight", weight);
  p.grad_output = grad_output.const_data_ptr();
  p.grad_batch = grad_output.stride(0), p.grad_channel = grad_output.stride(1);
  p.input = input.const_data_ptr();
  p.input_batch = input.stride(0), p.input_channel = input.stride(1);
  p.weight = weight.const_data_ptr();
  p.weight_channel = weight.stride(0), p.weight_row = weight.stride(1);
  if (output.has_value()) {
    output = dense(op, "output", *output);
    p.output = output->const_data_ptr();
    p.output_batch = output->stride(0), p.output_channel = output->stride(1);
  }
  const auto gradient = [&](const char* name, bool needed, std::initializer_list<int64_t> sizes) {
    return needed ? empty(op, name, input, type, sizes) : none(input);
  };
  Tensor grad_input = gradient("gradient of input", needs_input, {p.batch, p.channels, p.n_in});
  Tensor grad_weight = gradient("gradient of weight", needs_weight, {p.channels, p.n_out, p.n_in});
  Tensor grad_bias = gradient("gradient of bias", needs_bias, {p.channels, p.n_out});
  p.grad_input = needs_input ? grad_input.mutable_data_ptr() : nullptr;
  p.grad_weight = needs_weight ? grad_weight.mutable_data_ptr() : nullptr;
  p.grad_bias = needs_bias ? grad_bias.mutable_data_ptr() : nullptr;
  p.products = float32_products(p.dtype);
  if (grad_input.numel() + grad_weight.numel() + grad_bias.numel() > 0) execute(grad_output, p);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "channelwise_linear", &channelwise_linear);
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "channelwise_linear_backward", &channelwise_linear_backward);
}
