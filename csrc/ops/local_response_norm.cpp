// torch bindings of local response normalisation and its gradient.
#include "common.h"

#ifndef CEK_CUDA
namespace cekernels {
namespace {

Tensor normalize(const char* op, Tensor input, OptionalTensor grad, int64_t size, double alpha,
                 double beta, double k) {
  expect(op, "input", input, input, {-1, -1, -1, -1});
  LocalResponseNorm p{};
  p.dtype = floating(op, "input", input);
  p.batch = input.size(0), p.channels = input.size(1);
  p.positions = input.size(2) * input.size(3);
  // The margins of the windows are in memory.
  CEK_CHECK(op, size >= 1 && size <= 1 << 16, "size must be from 1 to 65536");
  p.size = size, p.alpha = alpha, p.beta = beta, p.k = k;
  if (grad.has_value()) {
    expect(op, "grad_output", *grad, input, {p.batch, p.channels, input.size(2), input.size(3)});
    expect_type(op, "grad_output", *grad, input.scalar_type());
  }
  p.channels_last = is_channels_last(input);
  if (!is_dense(input, p.channels_last)) input = copy(op, "input", input);
  Tensor output = empty_as(op, "output", input, p.channels_last);
  if (output.numel() == 0) return output;
  if (grad.has_value() && !is_dense(*grad, p.channels_last)) {
    // In the layout of the input.
    Tensor same = empty_as(op, "grad_output", *grad, p.channels_last);
    torch::stable::copy_(same, *grad);
    grad = same;
  }
  p.input = input.const_data_ptr();
  p.grad_output = grad.has_value() ? grad->const_data_ptr() : nullptr;
  p.output = output.mutable_data_ptr();
  execute(input, p);
  return output;
}

Tensor local_response_norm(Tensor input, int64_t size, double alpha, double beta, double k) {
  return normalize("local_response_norm", input, std::nullopt, size, alpha, beta, k);
}

Tensor local_response_norm_backward(Tensor grad_output, Tensor input, int64_t size, double alpha,
                                    double beta, double k) {
  return normalize("local_response_norm_backward", input, grad_output, size, alpha, beta, k);
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "local_response_norm", &local_response_norm);
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "local_response_norm_backward", &local_response_norm_backward);
}
#endif
