// Package chart draws the rows of a suite. A chart has a panel for each figure. A panel has a bar for each subject: its
// length is the median, its whisker goes from the least to the largest of the rounds, and its text repeats what the
// table says. A whisker without an end goes on beyond the panel.
package chart

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"tapestry.dev/tapestry/bench"
)

// Chart is what to draw.
type Chart struct {
	Title string
	About string // a line below the title
	Rows  []bench.Row
	// Colour returns a subject's colour, the same in every chart of a run; see Palette.
	Colour func(subject string) color.Color
}

// Formats are the names of the formats that Write knows.
var Formats = []string{"svg", "png"}

// Write draws the chart in one of Formats. The picture is about a thousand pixels wide at 96 pixels to the inch, and as
// high as its panels need.
func (c Chart) Write(w io.Writer, format string) error {
	panels := c.panels()
	if len(panels) == 0 {
		return fmt.Errorf("chart %s: there is nothing to draw", c.Title)
	}
	page := arrange(panels)
	var canvas interface {
		vg.CanvasSizer
		io.WriterTo
	}
	switch format {
	case "svg":
		canvas = vgsvg.NewWith(vgsvg.UseWH(width, page.height))
	case "png":
		canvas = vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, page.height), vgimg.UseDPI(96), vgimg.UseBackgroundColor(color.White))}
	default:
		return fmt.Errorf("chart format %q: expected one of %q", format, Formats)
	}
	if err := c.draw(draw.New(canvas), page); err != nil {
		return fmt.Errorf("chart %s: %w", c.Title, err)
	}
	_, err := canvas.WriteTo(w)
	return err
}

// Measures of the page in points. A point is 96/72 pixels.
const (
	width      vg.Length = 750
	head       vg.Length = 46 // for title and About
	gap        vg.Length = 14 // around panels
	lineHeight vg.Length = 12.5
	frame      vg.Length = 57 // of a panel: its title and its axis
	columns              = 2
	column               = (width - gap*(columns+1)) / columns
	textSize             = 8.5
)

// sans returns the typeface in a size given in points.
func sans(size float64) font.Font {
	return font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, vg.Points(size))
}

func style(size float64, c color.Color) text.Style {
	return text.Style{Color: c, Font: sans(size), Handler: plot.DefaultTextHandler}
}

var (
	ink  = color.Gray{Y: 0x20}
	pale = color.Gray{Y: 0x70}
	line = color.Gray{Y: 0xdd}
)

// page is where the panels stand.
type page struct {
	places []place
	height vg.Length
}

// place is where one panel stands: its column, and its distance from the page's top.
type place struct {
	panel  panel
	column int
	top    vg.Length
}

// arrange puts each panel into the column that ends first, below the column's last panel.
func arrange(panels []panel) page {
	var ends [columns]vg.Length
	p := page{}
	for _, panel := range panels {
		c := 0
		for i, end := range ends {
			if end < ends[c] {
				c = i
			}
		}
		p.places = append(p.places, place{panel, c, head + ends[c]})
		ends[c] += panel.height() + gap
	}
	p.height = head + slices.Max(ends[:])
	return p
}

func (c Chart) draw(dc draw.Canvas, p page) error {
	dc.FillText(style(15, ink), vg.Point{X: gap, Y: dc.Max.Y - 20}, c.Title)
	dc.FillText(style(textSize, pale), vg.Point{X: gap, Y: dc.Max.Y - 36}, c.About)
	for _, at := range p.places {
		left, top := gap+vg.Length(at.column)*(column+gap), dc.Max.Y-at.top
		area := vg.Rectangle{Min: vg.Point{X: left, Y: top - at.panel.height()}, Max: vg.Point{X: left + column, Y: top}}
		if err := c.panel(draw.Canvas{Canvas: dc.Canvas, Rectangle: area}, at.panel); err != nil {
			return err
		}
	}
	return nil
}

// panel draws one panel. A unit of its vertical axis is a line: a line of text, or a bar.
func (c Chart) panel(dc draw.Canvas, p panel) error {
	pl := plot.New()
	pl.Title.Text, pl.Title.TextStyle = p.title, style(10.5, ink)
	pl.Title.TextStyle.XAlign, pl.Title.TextStyle.YAlign = draw.XCenter, draw.YTop
	pl.X.Label.Text, pl.X.Label.TextStyle = p.unit, style(textSize, pale)
	pl.X.Label.TextStyle.XAlign = draw.XCenter
	pl.X.Tick.Marker = plot.TickerFunc(ticks)
	pl.X.Tick.Label = style(8, pale)
	pl.X.Tick.Label.XAlign, pl.X.Tick.Label.YAlign = draw.XCenter, draw.YTop
	pl.X.Tick.Color, pl.X.Color, pl.X.Padding = line, line, 0
	pl.HideY()
	grid := plotter.NewGrid()
	grid.Horizontal.Width, grid.Vertical.Color = 0, line
	pl.Add(grid)
	most, longest := 0.0, 0.0
	units := p.units()
	y := float64(units)
	for _, b := range p.bars {
		top := y - 1
		y -= float64(len(b.text)) + 1
		bar, err := plotter.NewBarChart(plotter.Values{b.Value}, vg.Points(9))
		if err != nil {
			return err
		}
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, y, c.Colour(b.Subject), 0
		whisker, err := plotter.NewXErrorBars(spread{b.Line, y})
		if err != nil {
			return err
		}
		whisker.Color = ink
		pl.Add(bar, whisker, caption{b.text, top})
		longest, most = max(longest, b.Value), max(most, b.Max)
	}
	pl.X.Min, pl.X.Max, pl.Y.Min, pl.Y.Max = 0, span(longest, most), -0.8, float64(units)-0.4
	pl.Draw(dc)
	return nil
}

// span returns how much an axis shows: the longest whisker, but at most twice the longest bar, so that one disturbed
// round does not make all bars tiny.
func span(longest, whisker float64) float64 {
	if longest == 0 {
		return max(1, whisker)
	}
	return 1.02 * max(longest, min(whisker, 2*longest))
}

// ticks returns the ticks of an axis from 0 to high. They stand at multiples of 1, 2 or 5 times a power of ten, with
// four to nine of them besides the one at 0. Each has its number as a label.
func ticks(_, high float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10(high/4)))
	for _, factor := range []float64{5, 2} {
		if high/(step*factor) >= 4 {
			step *= factor
			break
		}
	}
	var all []plot.Tick
	for i := 0; float64(i)*step <= high; i++ {
		v := float64(i) * step
		all = append(all, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', 6, 64)})
	}
	return all
}

// caption is the text above a bar, left-aligned. Unlike plotter.Labels it takes no room beside the bars, since its
// lines are wrapped already.
type caption struct {
	lines []string
	top   float64
}

func (t caption) Plot(c draw.Canvas, p *plot.Plot) {
	_, y := p.Transforms(&c)
	words := style(textSize, ink)
	words.YAlign = draw.YCenter
	for i, line := range t.lines {
		c.FillText(words, vg.Point{X: c.Min.X, Y: y(t.top - float64(i))}, line)
	}
}

// spread is a line's whisker.
type spread struct {
	bench.Line
	y float64
}

func (s spread) Len() int                       { return 1 }
func (s spread) XY(int) (x, y float64)          { return s.Value, s.y }
func (s spread) XError(int) (low, high float64) { return s.Min - s.Value, s.Max - s.Value }
