// Removal of seams, on the CPU alone.
#include "common.h"

#ifndef CEK_CUDA

namespace cekernels {
namespace {

Tensor remove_seam(Tensor image, Tensor mask) {
  const char* op = "remove_seam";
  RemoveSeam p{};
  expect(op, "image", image, image, {-1, -1, -1, -1});
  floating(op, "image", image);
  const ScalarType type = image.scalar_type();
  p.batch = image.size(0), p.channels = image.size(1);
  p.height = image.size(2), p.width = image.size(3);
  constexpr int64_t most = int64_t(1) << 31;
  CEK_CHECK(op, p.height < most && p.width < most && p.height * p.width < most,
            "image must have fewer than 2^31 pixels");
  expect(op, "mask", mask, image, {p.batch, 1, p.height, p.width});
  CEK_CHECK(op, is_bytes(mask), "mask must be bool or uint8");
  if (type == ScalarType::Float) {
    image = contiguous(op, "image", image);
  } else {
    Tensor single = empty(op, "image in float32", image, ScalarType::Float,
                          {p.batch, p.channels, p.height, p.width});
    image = torch::stable::copy_(single, image);
  }
  mask = contiguous(op, "mask", mask);
  p.image = static_cast<const float*>(image.const_data_ptr());
  p.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  Tensor output = empty(op, "output", image, ScalarType::Float,
                        {p.batch, p.channels, p.height, p.width});
  p.output = static_cast<float*>(output.mutable_data_ptr());
  execute(image, p);
  return torch::stable::to(output, type);
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT(m, "remove_seam", &remove_seam);
}

#endif
