// Laplace's equation on the pixels of a hole: conjugate gradients, preconditioned by one V-cycle of
// multigrid by aggregation (Braess 1995). Time and memory follow the hole's area, not the image's,
// whatever number of pieces the hole has.
#include <algorithm>
#include <vector>

#include "simd.h"

namespace cekernels {
namespace cpu {
namespace {

constexpr int64_t kGrain = 4096;  // unknowns that one thread takes at a time
constexpr int64_t kSteps = 500;
constexpr double kTolerance = 1e-7;  // of the residual, as a part of the right-hand side
// Constants on blocks of 2 x 2 make the coarse equations about twice too stiff.
constexpr float kOvercorrection = 1.8f;

enum Direction { kLeft, kRight, kUp, kDown };

// diagonal[i] u[i] - sum of weight[i][d] u[neighbour[i][d]] = right[i]
struct Grid {
  struct Links {
    int32_t neighbour[4];
    float weight[4];  // 0: none, and then the neighbour is the unknown itself
  };
  std::vector<int32_t> row, column;  // of each unknown, in reading order
  std::vector<Links> links;
  std::vector<float> diagonal;
  std::vector<int32_t> colors[2];  // the unknowns as on a chessboard: no two of one list are linked
  std::vector<int32_t> parent;     // the unknown of the next grid that stands for this one
  std::vector<float> solution, right;

  int64_t size() const { return int64_t(row.size()); }

  void prepare() {
    for (int64_t i = 0; i < size(); ++i) {
      colors[(row[size_t(i)] + column[size_t(i)]) & 1].push_back(int32_t(i));
    }
    solution.assign(row.size(), 0), right.assign(row.size(), 0);
  }
};

bool linked(const Grid& grid) {
  for (const Grid::Links& l : grid.links) {
    for (const float w : l.weight) {
      if (w != 0) return true;
    }
  }
  return false;
}

Grid finest(const uint8_t* mask, int64_t height, int64_t width) {
  Grid grid;
  for (int64_t y = 0; y < height; ++y, mask += width) {
    for (int64_t x = 0; x < width; ++x) {
      if (mask[x] == 0) continue;
      grid.row.push_back(int32_t(y)), grid.column.push_back(int32_t(x));
    }
  }
  const int64_t count = grid.size();
  grid.links.resize(size_t(count));
  grid.diagonal.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    Grid::Links& l = grid.links[size_t(i)];
    for (int d = 0; d < 4; ++d) l.neighbour[d] = int32_t(i), l.weight[d] = 0;
    const int32_t y = grid.row[size_t(i)], x = grid.column[size_t(i)];
    grid.diagonal[size_t(i)] = float((y > 0) + (y + 1 < height) + (x > 0) + (x + 1 < width));
  }
  const auto link = [&](int64_t i, int64_t j, Direction forward, Direction back) {
    grid.links[size_t(i)].neighbour[forward] = int32_t(j);
    grid.links[size_t(i)].weight[forward] = 1;
    grid.links[size_t(j)].neighbour[back] = int32_t(i);
    grid.links[size_t(j)].weight[back] = 1;
  };
  int64_t above = 0;  // the first pixel that is not before the one above pixel i
  for (int64_t i = 0; i < count; ++i) {
    const int32_t y = grid.row[size_t(i)], x = grid.column[size_t(i)];
    if (i > 0 && grid.row[size_t(i - 1)] == y && grid.column[size_t(i - 1)] == x - 1) {
      link(i - 1, i, kRight, kLeft);
    }
    while (grid.row[size_t(above)] < y - 1 ||
           (grid.row[size_t(above)] == y - 1 && grid.column[size_t(above)] < x)) {
      ++above;
    }
    if (grid.row[size_t(above)] == y - 1 && grid.column[size_t(above)] == x) {
      link(above, i, kDown, kUp);
    }
  }
  return grid;
}

// The Galerkin equations of corrections that are constant on blocks of 2 x 2 pixels.
Grid coarser(Grid& fine) {
  Grid coarse;
  const int64_t count = fine.size();
  fine.parent.resize(size_t(count));
  for (int64_t first = 0; first < count;) {
    // Two rows of pixels, merged by column.
    const int32_t y = fine.row[size_t(first)] / 2;
    int64_t middle = first, last;
    while (middle < count && fine.row[size_t(middle)] == 2 * y) ++middle;
    last = middle;
    while (last < count && fine.row[size_t(last)] == 2 * y + 1) ++last;
    for (int64_t a = first, b = middle; a < middle || b < last;) {
      const bool upper = b == last ||
                         (a < middle && fine.column[size_t(a)] / 2 <= fine.column[size_t(b)] / 2);
      const int64_t i = upper ? a++ : b++;
      const int32_t x = fine.column[size_t(i)] / 2;
      if (coarse.row.empty() || coarse.row.back() != y || coarse.column.back() != x) {
        coarse.row.push_back(y), coarse.column.push_back(x);
      }
      fine.parent[size_t(i)] = int32_t(coarse.size() - 1);
    }
    first = last;
  }
  coarse.links.resize(coarse.row.size());
  coarse.diagonal.assign(coarse.row.size(), 0);
  for (int64_t i = 0; i < coarse.size(); ++i) {
    for (int d = 0; d < 4; ++d) {
      coarse.links[size_t(i)].neighbour[d] = int32_t(i), coarse.links[size_t(i)].weight[d] = 0;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int32_t to = fine.parent[size_t(i)];
    coarse.diagonal[size_t(to)] += fine.diagonal[size_t(i)];
    for (int d = 0; d < 4; ++d) {
      const float weight = fine.links[size_t(i)].weight[d];
      if (weight == 0) continue;
      const int32_t other = fine.parent[size_t(fine.links[size_t(i)].neighbour[d])];
      if (other == to) {
        coarse.diagonal[size_t(to)] -= weight;
      } else {
        coarse.links[size_t(to)].neighbour[d] = other;
        coarse.links[size_t(to)].weight[d] += weight;
      }
    }
  }
  return coarse;
}

class Solver {
 public:
  // `mask` (H, W); image and output (C, H, W).
  Solver(const RemoveSeam& p, int64_t sample)
      : p_(p),
        size_(p.height * p.width),
        mask_(p.mask + sample * size_),
        image_(p.image + sample * p.channels * size_),
        output_(p.output + sample * p.channels * size_) {
    grids_.push_back(finest(mask_, p.height, p.width));
    grids_.back().prepare();
    while (linked(grids_.back())) {
      Grid next = coarser(grids_.back());
      next.prepare();
      grids_.push_back(std::move(next));
    }
  }

  void run() {
    std::copy(image_, image_ + p_.channels * size_, output_);
    // Without known pixels there is nothing to meet.
    if (grids_[0].size() == 0 || grids_[0].size() == size_) return;
    for (int64_t c = 0; c < p_.channels; ++c) correct(image_ + c * size_, output_ + c * size_);
  }

 private:
  using Vector = std::vector<float>;

  template <class F>
  static double sum(int64_t count, const F& f) {
    std::vector<double> parts(size_t(divide_up(count, kGrain)));
    parallel(int64_t(parts.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        double total = 0;
        for (int64_t i = part * kGrain; i < smaller(count, (part + 1) * kGrain); ++i)
          total += f(size_t(i));
        parts[size_t(part)] = total;
      }
    });
    double total = 0;
    for (const double part : parts) total += part;
    return total;
  }

  template <class F>
  static void each(int64_t count, const F& f) {
    parallel(count, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(size_t(i));
    });
  }

  static CEK_INLINE float neighbours(const Grid& grid, const Vector& u, size_t i) {
    const Grid::Links& l = grid.links[i];
    float total = 0;
    for (int d = 0; d < 4; ++d) total += l.weight[d] * u[size_t(l.neighbour[d])];
    return total;
  }

  void correct(const float* image, float* output) {
    Grid& grid = grids_[0];
    const int64_t count = grid.size();
    Vector u(size_t(count), 0), residual(static_cast<size_t>(count)), direction(size_t(count), 0),
        image_of_direction(static_cast<size_t>(count));
    each(count, [&](size_t i) { residual[i] = right(image, grid.row[i], grid.column[i]); });
    const double start = sum(count, [&](size_t i) { return double(residual[i]) * residual[i]; });
    double before = 0;
    for (int64_t step = 0; step < kSteps && start > 0; ++step) {
      grid.right = residual;
      cycle(0);
      const double now = sum(count,
                             [&](size_t i) { return double(residual[i]) * grid.solution[i]; });
      const float keep = step == 0 ? 0 : float(now / before);
      before = now;
      each(count, [&](size_t i) { direction[i] = grid.solution[i] + keep * direction[i]; });
      each(count, [&](size_t i) {
        image_of_direction[i] = grid.diagonal[i] * direction[i] - neighbours(grid, direction, i);
      });
      const double curvature = sum(
          count, [&](size_t i) { return double(direction[i]) * image_of_direction[i]; });
      if (!(curvature > 0)) break;
      const float length = float(now / curvature);
      each(count, [&](size_t i) {
        u[i] += length * direction[i];
        residual[i] -= length * image_of_direction[i];
      });
      const double left = sum(count, [&](size_t i) { return double(residual[i]) * residual[i]; });
      if (left <= kTolerance * kTolerance * start) break;
    }
    each(count, [&](size_t i) { output[grid.row[i] * p_.width + grid.column[i]] += u[i]; });
  }

  // By how much the known neighbours of a pixel differ from it, all together.
  float right(const float* image, int64_t y, int64_t x) const {
    const int64_t here = y * p_.width + x;
    float total = 0;
    const auto meet = [&](bool inside, int64_t there) {
      if (inside && mask_[there] == 0) total += image[there] - image[here];
    };
    meet(x > 0, here - 1);
    meet(x + 1 < p_.width, here + 1);
    meet(y > 0, here - p_.width);
    meet(y + 1 < p_.height, here + p_.width);
    return total;
  }

  static void relax(Grid& grid, int color) {
    const std::vector<int32_t>& chosen = grid.colors[color];
    each(int64_t(chosen.size()), [&](size_t k) {
      const size_t i = size_t(chosen[k]);
      grid.solution[i] = (grid.right[i] + neighbours(grid, grid.solution, i)) / grid.diagonal[i];
    });
  }

  // An approximate solution from 0, a symmetric function of the right-hand side.
  void cycle(size_t level) {
    Grid& grid = grids_[level];
    std::fill(grid.solution.begin(), grid.solution.end(), 0.0f);
    relax(grid, 0);
    relax(grid, 1);
    if (level + 1 == grids_.size()) return;
    Grid& next = grids_[level + 1];
    std::fill(next.right.begin(), next.right.end(), 0.0f);
    for (size_t i = 0; i < size_t(grid.size()); ++i) {
      next.right[size_t(grid.parent[i])] += grid.right[i] - grid.diagonal[i] * grid.solution[i] +
                                            neighbours(grid, grid.solution, i);
    }
    cycle(level + 1);
    each(grid.size(), [&](size_t i) {
      grid.solution[i] += kOvercorrection * next.solution[size_t(grid.parent[i])];
    });
    relax(grid, 1);
    relax(grid, 0);
  }

  const RemoveSeam& p_;
  const int64_t size_;
  const uint8_t* mask_;
  const float* image_;
  float* output_;
  std::vector<Grid> grids_;
};

}  // namespace

void run(const RemoveSeam& p) {
  for (int64_t sample = 0; sample < p.batch; ++sample) Solver(p, sample).run();
}

}  // namespace cpu
}  // namespace cekernels
