// torch binding of fill_masked.
#include "common.h"

namespace cekernels {
namespace {

Tensor fill_masked(Tensor image, Tensor mask, Tensor value) {
  const char* op = "fill_masked";
  expect(op, "image", image, image, {-1, -1, -1, -1});
  FillMasked p{};
  p.batch = image.size(0), p.channels = image.size(1);
  p.height = image.size(2), p.width = image.size(3);
  expect(op, "mask", mask, image, {p.batch, -1, p.height, p.width});
  CEK_CHECK(op, mask.size(1) == 1 || mask.size(1) == p.channels,
            "mask must have 1 channel or as many as image");
  expect_value(op, value, image);
  p.element_size = element_size(op, "image", image);
  p.mask_element_size = element_size(op, "mask", mask);
  p.mask_floating = !is_bytes(mask);
  if (p.mask_floating) floating(op, "mask (unless bool or uint8)", mask);
  const Tensor given = image;
  const Result output(op, "output", given);
  image = readable(op, "image", image);
  mask = readable(op, "mask", mask);
  value = dense(op, "value", value);
  p.image = planes(image), p.mask = planes(mask), p.value = value.const_data_ptr();
  p.output = output.made.mutable_data_ptr(), p.channels_last = output.channels_last;
  if (output.made.numel() > 0) execute(image, p);
  return output.get();
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "fill_masked", &fill_masked);
}
