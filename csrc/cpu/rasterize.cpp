// Polygons and boxes, row by row: the columns where edges cross a row are sorted, and the spans
// between them are set. Filling copies the image outside the spans and writes the value inside.
#include <algorithm>
#include <new>
#include <vector>

#include "../geometry.h"
#include "kernels.h"

namespace cekernels {
namespace cpu {
namespace {

// Twice the column where an edge crosses a row, plus 1 if the edge runs down. Sorts by column.
using Crossing = uint32_t;

struct Span {
  int32_t begin, end;
};

// Crossings in memory at a time. A sample is processed in bands of rows with at most this number,
// or of a single row.
constexpr int64_t kBandCrossings = 1 << 16;

// Scratch memory that grows as needed and is not cleared.
template <class T>
T* at_least(std::vector<T>& scratch, int64_t count) {
  if (int64_t(scratch.size()) < count) scratch.resize(size_t(count));
  return scratch.data();
}

// Writes the spans of a row to the mask and the filled image, and adds up their area.
class RowWriter {
 public:
  RowWriter(const Shapes& p, int64_t sample) : p_(p), sample_(sample) {
    memset(p.mask + sample * p.height * p.width, 0, size_t(p.height * p.width));
  }

  // The spans must be in ascending order and disjoint.
  CEK_INLINE void write(int64_t row, const Span* first, const Span* last) {
    uint8_t* mask = p_.mask + (sample_ * p_.height + row) * p_.width;
    for (const Span* span = first; span != last; ++span) {
      memset(mask + span->begin, 1, size_t(span->end - span->begin));
      area += span->end - span->begin;
    }
    switch (p_.element_size) {
      case 1: return fill<uint8_t>(row, first, last);
      case 2: return fill<uint16_t>(row, first, last);
      case 4: return fill<uint32_t>(row, first, last);
      case 8: return fill<uint64_t>(row, first, last);
    }
  }

  int64_t area = 0;

 private:
  template <class T>
  __attribute__((noinline)) void fill(int64_t row, const Span* first, const Span* last) const {
    for (int64_t c = 0; c < p_.channels; ++c) {
      const T value = static_cast<const T*>(p_.value)[c];
      const T* from = static_cast<const T*>(p_.image.data) + sample_ * p_.image.batch +
                      c * p_.image.channel + row * p_.image.row;
      T* to = static_cast<T*>(p_.output) +
              ((sample_ * p_.channels + c) * p_.height + row) * p_.width;
      int64_t column = 0;
      for (const Span* span = first; span != last; ++span) {
        memcpy(to + column, from + column, size_t(span->begin - column) * sizeof(T));
        std::fill(to + span->begin, to + span->end, value);
        column = span->end;
      }
      memcpy(to + column, from + column, size_t(p_.width - column) * sizeof(T));
    }
  }

  const Shapes& p_;
  const int64_t sample_;
};

void sort(Crossing* first, Crossing* last) {
  if (last - first > 32) return std::sort(first, last);
  for (Crossing* c = first + 1; c < last; ++c) {
    const Crossing moved = *c;
    Crossing* to = c;
    for (; to != first && to[-1] > moved; --to) *to = to[-1];
    *to = moved;
  }
}

// Sorts the crossings of one row and writes the spans inside the shape, each of at least one pixel.
// Returns their end; `spans` must have room for half the crossings plus one.
CEK_INLINE Span* make_spans(Crossing* first, Crossing* last, bool even_odd, int64_t width,
                            Span* spans) {
  if (last - first == 2 && (even_odd || (first[0] ^ first[1]) % 2 != 0)) {
    const auto [left, right] = std::minmax(first[0], first[1]);
    *spans = {int32_t(left / 2), int32_t(right / 2)};
    return spans + (spans->begin != spans->end);
  }
  sort(first, last);
  const uint32_t counted = even_odd ? 1 : ~0u;  // the bits of the winding number that matter
  uint32_t winding = 0;
  Span* span = spans;  // the open or the next span
  for (const Crossing* c = first; c != last; ++c) {
    const int32_t column = int32_t(*c / 2);
    const bool was_inside = (winding & counted) != 0;
    winding += *c % 2 != 0 ? 1 : -1;
    const bool inside = (winding & counted) != 0;
    if (was_inside == inside) continue;
    if (!inside) {
      span->end = column;
      span += span->begin != column;
    } else if (span != spans && span[-1].end == column) {
      --span;  // continue the last span
    } else {
      span->begin = column;
    }
  }
  // Edges beyond the right border are not recorded: a span still open ends at the border.
  if ((winding & counted) != 0) (span++)->end = int32_t(width);
  return span;
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
  // Collects the edges that cross any row of centres, and counts the crossings per row.
  void collect(const Shapes& p, int64_t sample) {
    edge_count_ = 0;
    counts_.assign(size_t(p.height) + 1, 0);
    const Range contours = safe_range(p.sample_offsets, sample, p.contour_count);
    for (int64_t k = contours.first; k < contours.last; ++k) {
      const Range range = safe_range(p.contour_offsets, k, p.vertex_count);
      Edge* edges = at_least(edges_, edge_count_ + range.last - range.first);
      for (int64_t v = range.first; v < range.last; ++v) {
        const int64_t next = v + 1 < range.last ? v + 1 : range.first;
        // Constructed in place: a copy would load with one instruction what several just stored.
        const Edge& edge = *new (edges + edge_count_)
                               Edge(make_edge(p.vertices + 2 * v, p.vertices + 2 * next, p.height));
        // No branch: whether a short edge crosses a row cannot be predicted.
        edge_count_ += edge.direction != 0;
        ++counts_[edge.first];
        --counts_[edge.last];
      }
    }
    for (int64_t row = 1; row < p.height; ++row) counts_[row] += counts_[row - 1];
  }

  void band(const Shapes& p, int32_t first, int32_t last, int64_t total, RowWriter& writer) {
    Crossing* crossings = at_least(crossings_, total);
    Crossing** ends = at_least(ends_, p.height);
    Span* spans = at_least(spans_, total / 2 + 1);
    Crossing* begin = crossings;
    for (int32_t row = first; row < last; ++row) {
      ends[row] = begin;
      begin += counts_[row];
    }
    for (int64_t e = 0; e < edge_count_; ++e) {
      const Edge& edge = edges_[e];
      const int32_t from = std::max(edge.first, first), to = std::min(edge.last, last);
      if (from >= to) continue;
      if (edge.is_short()) {
        cross(EdgeWalk<int32_t>(edge, from), edge.direction, p.width, ends + from, ends + to);
      } else {
        cross(EdgeWalk<int64_t>(edge, from), edge.direction, p.width, ends + from, ends + to);
      }
    }
    begin = crossings;
    for (int32_t row = first; row < last; ++row) {
      writer.write(row, spans, make_spans(begin, ends[row], p.even_odd, p.width, spans));
      begin += counts_[row];
    }
  }

  // Appends the crossings of an edge to those of its rows.
  template <class Walk>
  static CEK_INLINE void cross(Walk walk, int32_t direction, int64_t width, Crossing** end,
                               Crossing** last) {
    for (; end != last; ++end, walk.next_row()) {
      const Crossing column = walk.quotient > 0 ? Crossing(walk.quotient) : 0;
      **end = 2 * column + (direction > 0);
      *end += walk.quotient < width;
    }
  }

  int64_t edge_count_ = 0;
  std::vector<Edge> edges_;
  std::vector<int64_t> counts_;
  std::vector<Crossing> crossings_;
  std::vector<Crossing*> ends_;
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
      writer.write(row, spans_.data(), spans_.data() + spans_.size());
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

template <class Sample>
void each_sample(const Shapes& p) {
  parallel(p.batch, 1, [&](int64_t begin, int64_t end) {
    Sample shapes;
    for (int64_t b = begin; b < end; ++b) shapes.run(p, b);
  });
}

}  // namespace

void run(const Shapes& p) {
  if (p.height * p.width == 0) {
    std::fill(p.area, p.area + p.batch, 0);
    return;
  }
  if (p.boxes) {
    each_sample<BoxSample>(p);
  } else {
    each_sample<PolygonSample>(p);
  }
}

}  // namespace cpu
}  // namespace cekernels
