// torch bindings of rasterize_polygons, rasterize_boxes, fill_polygons and fill_boxes.
#include "common.h"

namespace cekernels {
namespace {

// Checks on the CPU that offsets are non-decreasing and run from 0 to the limit. On a GPU reading
// them would synchronize; there the kernels clamp them, so that invalid offsets cause no
// out-of-bounds access.
void expect_offsets(const char* op, const char* name, const Tensor& offsets, int64_t limit,
                    const char* what) {
#ifdef CEK_CUDA
  (void)op, (void)name, (void)offsets, (void)limit, (void)what;
#else
  const int64_t* value = static_cast<const int64_t*>(offsets.const_data_ptr());
  const int64_t count = offsets.size(0);
  bool valid = value[0] == 0 && value[count - 1] == limit;
  for (int64_t i = 1; i < count && valid; ++i) valid = value[i - 1] <= value[i];
  if (valid) return;
  std::string values = "...";
  if (count <= 16) {
    values = "[";
    for (int64_t i = 0; i < count; ++i) values += (i ? ", " : "") + std::to_string(value[i]);
    values += "]";
  }
  throw std::invalid_argument(
      std::string(op) + ": " + name + " must be non-decreasing within 0.." + std::to_string(limit) +
      ", the number of " + what + ", and run from the one to the other, got " + values +
      " (first " + std::to_string(value[0]) + ", last " + std::to_string(value[count - 1]) + ")");
#endif
}

// Checks the operands, fills p and allocates masks and areas. Without contour_offsets the shapes
// are boxes. As in masked_loss.cpp, operands that a kernel cannot read in place are replaced by
// copies.
std::tuple<Tensor, Tensor> shapes_operands(const char* op, Tensor& vertices,
                                           OptionalTensor& contour_offsets, Tensor& sample_offsets,
                                           Shapes& p) {
  p.boxes = !contour_offsets.has_value();
  const char* name = p.boxes ? "boxes" : "vertices";
  expect(op, name, vertices, vertices, {-1, p.boxes ? 4 : 2});
  expect_type(op, name, vertices, ScalarType::Int);
  vertices = contiguous(op, "vertices", vertices);
  p.vertices = static_cast<const int32_t*>(vertices.const_data_ptr());
  p.vertex_count = vertices.size(0);
  if (!p.boxes) {
    expect(op, "contour_offsets", *contour_offsets, vertices, {-1});
    expect_type(op, "contour_offsets", *contour_offsets, ScalarType::Long);
    CEK_CHECK(op, contour_offsets->size(0) >= 1, "contour_offsets must not be empty");
    contour_offsets = dense(op, "contour_offsets", *contour_offsets);
    expect_offsets(op, "contour_offsets", *contour_offsets, p.vertex_count, "vertices");
    p.contour_offsets = static_cast<const int64_t*>(contour_offsets->const_data_ptr());
    p.contour_count = contour_offsets->size(0) - 1;
  }
  expect(op, "sample_offsets", sample_offsets, vertices, {-1});
  expect_type(op, "sample_offsets", sample_offsets, ScalarType::Long);
  CEK_CHECK(op, sample_offsets.size(0) >= 1, "sample_offsets must not be empty");
  sample_offsets = dense(op, "sample_offsets", sample_offsets);
  expect_offsets(op, "sample_offsets", sample_offsets, p.boxes ? p.vertex_count : p.contour_count,
                 p.boxes ? "boxes" : "contours");
  p.sample_offsets = static_cast<const int64_t*>(sample_offsets.const_data_ptr());
  p.batch = sample_offsets.size(0) - 1;
  CEK_CHECK(op, p.height >= 0 && p.width >= 0, "height and width must not be negative");
  CEK_CHECK(op, p.height <= INT32_MAX && p.width <= INT32_MAX, "height and width must fit int32");
  Tensor mask = empty(op, "mask", vertices, ScalarType::Bool, {p.batch, 1, p.height, p.width});
  Tensor area = empty(op, "area", vertices, ScalarType::Long, {p.batch});
  p.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  p.area = static_cast<int64_t*>(area.mutable_data_ptr());
  return {mask, area};
}

std::tuple<Tensor, Tensor> rasterize(const char* op, Tensor vertices,
                                     OptionalTensor contour_offsets, Tensor sample_offsets,
                                     int64_t height, int64_t width, bool even_odd) {
  Shapes p{};
  p.height = height, p.width = width, p.even_odd = even_odd;
  auto result = shapes_operands(op, vertices, contour_offsets, sample_offsets, p);
  if (p.batch > 0) execute(vertices, p);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> fill(const char* op, Tensor image, Tensor value, Tensor vertices,
                                        OptionalTensor contour_offsets, Tensor sample_offsets,
                                        bool even_odd) {
  Shapes p{};
  expect(op, "image", image, vertices, {sample_offsets.numel() - 1, -1, -1, -1});
  p.channels = image.size(1), p.height = image.size(2), p.width = image.size(3);
  p.even_odd = even_odd;
  auto [mask, area] = shapes_operands(op, vertices, contour_offsets, sample_offsets, p);
  expect_value(op, value, image);
  p.element_size = element_size(op, "image", image);
  image = dense(op, "image", image), value = dense(op, "value", value);
  p.image = planes(image), p.value = value.const_data_ptr();
  Tensor output = empty(op, "output", image, image.scalar_type(),
                        {p.batch, p.channels, p.height, p.width});
  p.output = output.mutable_data_ptr();
  if (p.batch > 0) execute(vertices, p);
  return {output, mask, area};
}

bool is_even_odd(const char* op, const std::string& fill_rule) {
  CEK_CHECK(op, fill_rule == "evenodd" || fill_rule == "nonzero",
            "fill_rule must be nonzero or evenodd");
  return fill_rule == "evenodd";
}

std::tuple<Tensor, Tensor> rasterize_polygons(Tensor vertices, Tensor contour_offsets,
                                              Tensor sample_offsets, int64_t height, int64_t width,
                                              std::string fill_rule) {
  const char* op = "rasterize_polygons";
  return rasterize(op, vertices, contour_offsets, sample_offsets, height, width,
                   is_even_odd(op, fill_rule));
}

std::tuple<Tensor, Tensor> rasterize_boxes(Tensor boxes, Tensor sample_offsets, int64_t height,
                                           int64_t width) {
  return rasterize("rasterize_boxes", boxes, std::nullopt, sample_offsets, height, width, false);
}

std::tuple<Tensor, Tensor, Tensor> fill_polygons(Tensor image, Tensor value, Tensor vertices,
                                                 Tensor contour_offsets, Tensor sample_offsets,
                                                 std::string fill_rule) {
  const char* op = "fill_polygons";
  return fill(op, image, value, vertices, contour_offsets, sample_offsets,
              is_even_odd(op, fill_rule));
}

std::tuple<Tensor, Tensor, Tensor> fill_boxes(Tensor image, Tensor value, Tensor boxes,
                                              Tensor sample_offsets) {
  return fill("fill_boxes", image, value, boxes, std::nullopt, sample_offsets, false);
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT(m, "rasterize_polygons", &rasterize_polygons);
  CEK_IMPLEMENT(m, "rasterize_boxes", &rasterize_boxes);
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "fill_polygons", &fill_polygons);
  CEK_IMPLEMENT_DIFFERENTIABLE(m, "fill_boxes", &fill_boxes);
}
