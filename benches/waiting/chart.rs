//! Line charts as SVG.

use std::fmt::Write;
use std::path::Path;

/// What is drawn. The horizontal axis is always logarithmic.
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) across: &'static str,
    pub(crate) up: &'static str,
    pub(crate) is_up_logarithmic: bool,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The drawing inside its margins, in pixels.
const LEFT: f64 = 80.0;
const TOP: f64 = 50.0;
const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 330.0;

/// Told apart also by those who do not see red and green.
const COLOURS: [&str; 5] = ["#0072b2", "#56b4e9", "#d55e00", "#555555", "#009e73"];

/// One axis: what is at its two ends.
struct Axis {
    from: f64,
    to: f64,
    is_logarithmic: bool,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, is_logarithmic: bool) -> Self {
        let smallest = values.clone().fold(f64::INFINITY, f64::min);
        let largest = values.fold(0.0, f64::max);
        match is_logarithmic {
            true => Axis {
                from: 10f64.powf(smallest.log10().floor()),
                to: 10f64.powf(largest.log10().ceil()),
                is_logarithmic,
            },
            false => Axis { from: 0.0, to: largest, is_logarithmic },
        }
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.is_logarithmic {
            true => (value / self.from).log10() / (self.to / self.from).log10(),
            false => (value - self.from) / (self.to - self.from),
        }
    }

    fn ticks(&self) -> Vec<f64> {
        match self.is_logarithmic {
            true => {
                let decades = (self.to / self.from).log10().round() as i32;
                (0..=decades).map(|power| self.from * 10f64.powi(power)).collect()
            }
            false => (0..=4).map(|quarter| self.to * f64::from(quarter) / 4.0).collect(),
        }
    }
}

/// Into the repository.
pub(crate) fn write(name: &str, chart: &Chart) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plots");
    std::fs::create_dir_all(&directory).expect("a directory for plots");
    let path = directory.join(name);
    std::fs::write(&path, chart.svg()).expect("a plot");
    println!("  plot: {}", path.display());
}

impl Chart {
    fn svg(&self) -> String {
        let points = self.lines.iter().flat_map(|line| &line.points);
        let across = Axis::of(points.clone().map(|point| point.0), true);
        let up = Axis::of(points.map(|point| point.1), self.is_up_logarithmic);
        let mut svg = String::new();
        self.draw(&mut svg, &across, &up).expect("a string takes everything");
        svg
    }

    fn draw(&self, svg: &mut String, across: &Axis, up: &Axis) -> std::fmt::Result {
        let (right, bottom, middle) = (LEFT + WIDTH, TOP + HEIGHT, LEFT + WIDTH / 2.0);
        let (width, height) = (right + 20.0, bottom + 60.0);
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"
        )?;
        text(svg, (middle, 24.0), "text-anchor=\"middle\" font-size=\"16\"", self.title)?;
        text(svg, (middle, bottom + 42.0), "text-anchor=\"middle\"", self.across)?;
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 20 {TOP})\"");
        text(svg, (20.0 - HEIGHT / 2.0, TOP), &turned, self.up)?;
        for tick in across.ticks() {
            let x = LEFT + across.place(tick) * WIDTH;
            rule(svg, (x, TOP), (x, bottom))?;
            text(svg, (x, bottom + 18.0), "text-anchor=\"middle\"", &number(tick))?;
        }
        for tick in up.ticks() {
            let y = bottom - up.place(tick) * HEIGHT;
            rule(svg, (LEFT, y), (right, y))?;
            text(svg, (LEFT - 6.0, y + 4.0), "text-anchor=\"end\"", &number(tick))?;
        }
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let place = |(x, y): &(f64, f64)| {
                let (x, y) = (LEFT + across.place(*x) * WIDTH, bottom - up.place(*y) * HEIGHT);
                format!("{x:.1},{y:.1}")
            };
            let points: Vec<_> = line.points.iter().map(place).collect();
            let points = points.join(" ");
            writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{points}\"/>"
            )?;
            let y = bottom - 12.0 - 16.0 * (self.lines.len() - 1 - index) as f64;
            let look = format!("text-anchor=\"end\" fill=\"{colour}\"");
            text(svg, (right - 10.0, y), &look, &line.name)?;
        }
        svg.push_str("</svg>\n");
        Ok(())
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), look: &str, words: &str) -> std::fmt::Result {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {look}>{words}</text>")
}

fn rule(svg: &mut String, from: (f64, f64), to: (f64, f64)) -> std::fmt::Result {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>"
    )
}

fn number(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}
