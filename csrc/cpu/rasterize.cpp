// Polygons and boxes, row by row: the columns where edges cross a row are sorted, and the runs
// between them are set. The fill copies the image outside the runs and writes the value inside.
#include <algorithm>
#include <vector>

#include "../geometry.h"
#include "kernels.h"

namespace cekernels {
namespace cpu {
namespace {

struct Crossing {
  int32_t column, direction;
};

struct Span {
  int32_t begin, end;
};

// Crossings kept at a time. One sample is cut into bands of rows that stay below it, except that a
// row always fits.
constexpr int64_t kBandCrossings = 1 << 16;

// Writes runs of a row into the mask and into the filled image, and counts them.
class RowWriter {
 public:
  RowWriter(const Shapes& p, int64_t sample) : p_(p), sample_(sample) {
    memset(p.mask + sample * p.height * p.width, 0, size_t(p.height * p.width));
  }

  void write(int64_t row, const std::vector<Span>& spans) {
    uint8_t* mask = p_.mask + (sample_ * p_.height + row) * p_.width;
    for (const Span& span : spans) {
      memset(mask + span.begin, 1, size_t(span.end - span.begin));
      area += span.end - span.begin;
    }
    switch (p_.element_size) {
      case 1: return fill<uint8_t>(row, spans);
      case 2: return fill<uint16_t>(row, spans);
      case 4: return fill<uint32_t>(row, spans);
      case 8: return fill<uint64_t>(row, spans);
    }
  }

  int64_t area = 0;

 private:
  template <class T>
  void fill(int64_t row, const std::vector<Span>& spans) const {
    for (int64_t c = 0; c < p_.channels; ++c) {
      const T value = static_cast<const T*>(p_.value)[c];
      const T* from = static_cast<const T*>(p_.image.data) + sample_ * p_.image.batch +
                      c * p_.image.channel + row * p_.image.row;
      T* to = static_cast<T*>(p_.output) + ((sample_ * p_.channels + c) * p_.height + row) * p_.width;
      int64_t column = 0;
      for (const Span& span : spans) {
        memcpy(to + column, from + column, size_t(span.begin - column) * sizeof(T));
        std::fill(to + span.begin, to + span.end, value);
        column = span.end;
      }
      memcpy(to + column, from + column, size_t(p_.width - column) * sizeof(T));
    }
  }

  const Shapes& p_;
  const int64_t sample_;
};

// Sorts the crossings of one row and returns the runs that are inside.
void make_spans(Crossing* first, Crossing* last, bool even_odd, int64_t width,
                std::vector<Span>& spans) {
  const auto before = [](const Crossing& a, const Crossing& b) { return a.column < b.column; };
  spans.clear();
  if (last - first == 2 && (even_odd || first[0].direction != first[1].direction)) {
    const auto [begin, end] = std::minmax(first[0].column, first[1].column);
    if (begin < end) spans.push_back({begin, end});
    return;
  }
  std::sort(first, last, before);
  int32_t winding = 0;
  for (const Crossing* c = first; c != last; ++c) {
    const bool was_inside = even_odd ? winding % 2 != 0 : winding != 0;
    winding += c->direction;
    const bool inside = even_odd ? winding % 2 != 0 : winding != 0;
    if (was_inside == inside) continue;
    if (inside) {
      if (!spans.empty() && spans.back().end == c->column) {
        continue;  // goes on where the last one ended: its end is set again below
      }
      spans.push_back({c->column, c->column});
    } else {
      spans.back().end = c->column;
    }
  }
  // An edge beyond the right border is not recorded: what is open there reaches the border.
  const bool open = even_odd ? winding % 2 != 0 : winding != 0;
  if (open && !spans.empty()) spans.back().end = int32_t(width);
  spans.erase(std::remove_if(spans.begin(), spans.end(),
                             [](const Span& s) { return s.begin == s.end; }),
              spans.end());
}

class PolygonSample {
 public:
  void run(const Shapes& p, int64_t sample) {
    collect(p, sample);
    RowWriter writer(p, sample);
    for (int64_t first = 0; first < p.height;) {
      int64_t last = first, crossings = 0;
      while (last < p.height && (last == first || crossings + counts_[last] <= kBandCrossings)) {
        crossings += counts_[last++];
      }
      band(p, int32_t(first), int32_t(last), crossings, writer);
      first = last;
    }
    p.area[sample] = writer.area;
  }

 private:
  // The edges that meet a row, and how many each row meets.
  void collect(const Shapes& p, int64_t sample) {
    edges_.clear();
    counts_.assign(size_t(p.height) + 1, 0);
    const Range contours = safe_range(p.sample_offsets, sample, p.contour_count);
    for (int64_t k = contours.first; k < contours.last; ++k) {
      const Range range = safe_range(p.contour_offsets, k, p.vertex_count);
      for (int64_t v = range.first; v < range.last; ++v) {
        const int64_t next = v + 1 < range.last ? v + 1 : range.first;
        const Edge edge = make_edge(p.vertices + 2 * v, p.vertices + 2 * next, p.height);
        if (edge.direction == 0) continue;
        edges_.push_back(edge);
        ++counts_[edge.first];
        --counts_[edge.last];
      }
    }
    for (int64_t row = 1; row < p.height; ++row) counts_[row] += counts_[row - 1];
  }

  void band(const Shapes& p, int32_t first, int32_t last, int64_t total, RowWriter& writer) {
    crossings_.resize(size_t(total));
    ends_.resize(size_t(last - first));
    starts_.resize(size_t(last - first));
    int64_t at = 0;
    for (int32_t row = first; row < last; ++row) {
      starts_[row - first] = ends_[row - first] = at;
      at += counts_[row];
    }
    for (const Edge& edge : edges_) {
      const int32_t begin = std::max(edge.first, first), end = std::min(edge.last, last);
      if (begin >= end) continue;
      EdgeWalk walk(edge, begin);
      for (int32_t row = begin; row < end; ++row, walk.next_row()) {
        if (walk.quotient >= p.width) continue;
        crossings_[ends_[row - first]++] = {int32_t(std::max<int64_t>(walk.quotient, 0)),
                                            edge.direction};
      }
    }
    for (int32_t row = first; row < last; ++row) {
      make_spans(crossings_.data() + starts_[row - first], crossings_.data() + ends_[row - first],
                 p.even_odd, p.width, spans_);
      writer.write(row, spans_);
    }
  }

  std::vector<Edge> edges_;
  std::vector<int64_t> counts_, starts_, ends_;
  std::vector<Crossing> crossings_;
  std::vector<Span> spans_;
};

class BoxSample {
 public:
  void run(const Shapes& p, int64_t sample) {
    boxes_.clear();
    const Range range = safe_range(p.sample_offsets, sample, p.vertex_count);
    for (int64_t k = range.first; k < range.last; ++k) {
      const int32_t* box = p.vertices + 4 * k;
      const Span x{first_pixel(box[0], p.width), first_pixel(box[2], p.width)};
      const Span y{first_pixel(box[1], p.height), first_pixel(box[3], p.height)};
      if (x.begin < x.end && y.begin < y.end) boxes_.push_back({x, y});
    }
    std::sort(boxes_.begin(), boxes_.end(),
              [](const Box& a, const Box& b) { return a.x.begin < b.x.begin; });
    RowWriter writer(p, sample);
    for (int64_t row = 0; row < p.height; ++row) {
      spans_.clear();
      for (const Box& box : boxes_) {
        if (row < box.y.begin || row >= box.y.end) continue;
        if (!spans_.empty() && box.x.begin <= spans_.back().end) {
          spans_.back().end = std::max(spans_.back().end, box.x.end);
        } else {
          spans_.push_back(box.x);
        }
      }
      writer.write(row, spans_);
    }
    p.area[sample] = writer.area;
  }

 private:
  struct Box {
    Span x, y;
  };
  std::vector<Box> boxes_;
  std::vector<Span> spans_;
};

}  // namespace

void run(const Shapes& p) {
  if (p.height * p.width == 0) {
    std::fill(p.area, p.area + p.batch, 0);
    return;
  }
  parallel(p.batch, 1, [&](int64_t begin, int64_t end) {
    if (p.boxes) {
      BoxSample boxes;
      for (int64_t b = begin; b < end; ++b) boxes.run(p, b);
    } else {
      PolygonSample polygons;
      for (int64_t b = begin; b < end; ++b) polygons.run(p, b);
    }
  });
}

}  // namespace cpu
}  // namespace cekernels
