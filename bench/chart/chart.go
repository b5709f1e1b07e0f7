// Package chart draws the rows of a suite: a panel for each figure with a bar for each subject, its length the median, a
// whisker from the least to the largest of the rounds, and beside the name what the table says. A whisker without an end goes
// on beyond the panel.
package chart

import (
	"fmt"
	"image/color"
	"io"
	"math"
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
	// Colour gives a subject's, the same in every chart of a run; see Palette.
	Colour func(subject string) color.Color
}

// Formats are the names of the formats that Write knows.
var Formats = []string{"svg", "png"}

// Write draws the chart. It is about a thousand pixels wide at 96 pixels to the inch, as high as it takes.
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

// Measures of the page in points, of 96/72 pixels.
const (
	width     vg.Length = 750
	head      vg.Length = 46 // for title and About
	gap       vg.Length = 14 // around panels
	barHeight vg.Length = 25 // with the line of text above
	frame     vg.Length = 52 // of a panel: its title and its axis
	perRow              = 2
)

// sans is the typeface in a size.
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

// page has the panels in rows of perRow.
type page struct {
	rows   [][]panel
	height vg.Length
}

// arrange puts panels into rows, each as high as its highest.
func arrange(panels []panel) page {
	p := page{height: head}
	for len(panels) > 0 {
		n := min(perRow, len(panels))
		p.rows = append(p.rows, panels[:n])
		p.height += rowHeight(panels[:n])
		panels = panels[n:]
	}
	return p
}

func rowHeight(row []panel) vg.Length {
	bars := 0
	for _, p := range row {
		bars = max(bars, len(p.bars))
	}
	return frame + vg.Length(bars)*barHeight + gap
}

func (c Chart) draw(dc draw.Canvas, p page) error {
	top := dc.Max.Y
	dc.FillText(style(15, ink), vg.Point{X: gap, Y: top - 20}, c.Title)
	dc.FillText(style(8.5, pale), vg.Point{X: gap, Y: top - 36}, c.About)
	top -= head
	column := (width - gap*(perRow+1)) / perRow
	for _, row := range p.rows {
		height := rowHeight(row)
		for i, panel := range row {
			left := gap + vg.Length(i)*(column+gap)
			// A panel with fewer bars than its neighbour is as high as its own, at the top.
			own := frame + vg.Length(len(panel.bars))*barHeight
			at := vg.Rectangle{Min: vg.Point{X: left, Y: top - own}, Max: vg.Point{X: left + column, Y: top}}
			if err := c.panel(draw.Canvas{Canvas: dc.Canvas, Rectangle: at}, panel); err != nil {
				return err
			}
		}
		top -= height
	}
	return nil
}

// panel draws one. Bars are at whole numbers from the top down, the text above each at half a step more.
func (c Chart) panel(dc draw.Canvas, p panel) error {
	pl := plot.New()
	pl.Title.Text, pl.Title.TextStyle = p.title, style(10.5, ink)
	pl.Title.TextStyle.XAlign, pl.Title.TextStyle.YAlign = draw.XCenter, draw.YTop
	pl.X.Label.Text, pl.X.Label.TextStyle = p.unit, style(8.5, pale)
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
	for i, b := range p.bars {
		y := float64(len(p.bars) - 1 - i)
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
		words, err := plotter.NewLabels(plotter.XYLabels{
			XYs: plotter.XYs{{X: 0, Y: y + 0.5}}, Labels: []string{fit(b.words(), dc.Max.X-dc.Min.X, sans(8.5))},
		})
		if err != nil {
			return err
		}
		words.TextStyle[0] = style(8.5, ink)
		words.TextStyle[0].YAlign = draw.YCenter
		pl.Add(bar, whisker, words)
		longest, most = max(longest, b.Value), max(most, b.Max)
	}
	pl.X.Min, pl.X.Max, pl.Y.Min, pl.Y.Max = 0, span(longest, most), -0.4, float64(len(p.bars))-0.2
	pl.Draw(dc)
	return nil
}

// span is how much an axis shows: the longest whisker, but no disturbed round that would leave nothing of the bars.
func span(longest, whisker float64) float64 {
	if longest == 0 {
		return max(1, whisker)
	}
	return 1.02 * max(longest, min(whisker, 2*longest))
}

// ticks stand at multiples of 1, 2 or 5 times a power of ten, four to nine of them besides the one at 0, each with its number.
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

// spread is a line's whisker.
type spread struct {
	bench.Line
	y float64
}

func (s spread) Len() int                       { return 1 }
func (s spread) XY(int) (x, y float64)          { return s.Value, s.y }
func (s spread) XError(int) (low, high float64) { return s.Min - s.Value, s.Max - s.Value }
