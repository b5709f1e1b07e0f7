// Package picture draws the output of a demo as an SVG that any browser shows: text on paper, a line for each step.
package picture

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Demo is the output of a demo.
type Demo struct {
	// Command is the command line that was typed.
	Command string
	Steps   []Step
	// Table has the measurements, with its head as the first row; nil when there are none.
	Table [][]string
	// Closing is the last sentence.
	Closing string
}

// Step is one line.
type Step struct {
	Name   string
	OK     bool
	Detail string
	Millis int64
}

// Sizes in pixels. A character of a monospaced font is at most glyph wide.
const (
	fontSize = 13
	glyph    = 7.83
	line     = 19
	margin   = 18
	bar      = 34 // the window's title
	width    = 1000
)

// Columns, counted in characters: where a step's name and detail begin, where its time ends, and the number of columns.
const (
	nameColumn   = 2
	millisColumn = 27 // where the right-aligned numbers end
	detailColumn = 29
	columns      = 123
)

const style = `text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#24292f;white-space:pre}` +
	`.dim{fill:#6e7781}.ok{fill:#1a7f37}.bad{fill:#cf222e}.name{font-weight:600}.num{fill:#6e7781;text-anchor:end}`

// Write draws the demo.
func Write(w io.Writer, d Demo) error {
	var p page
	p.text(0, "dim", "$ "+d.Command)
	p.next()
	for _, s := range d.Steps {
		mark, class := "✔", "ok"
		if !s.OK {
			mark, class = "✘", "bad"
		}
		p.text(0, class, mark)
		p.text(nameColumn, "name", s.Name)
		p.number(millisColumn, fmt.Sprintf("%d ms", s.Millis))
		for i, part := range wrap(s.Detail, columns-detailColumn) {
			if i > 0 {
				p.next()
			}
			p.text(detailColumn, map[bool]string{false: "bad"}[s.OK], part)
		}
		p.next()
	}
	p.table(d.Table)
	p.next()
	p.text(0, "", d.Closing)
	p.next()
	height := bar + margin/2 + p.row*line + margin
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img"><title>%s</title><style>%s</style>
<rect x=".5" y=".5" width="%d" height="%d" rx="8" fill="#fff" stroke="#d0d7de"/>
<path d="M.5 %d V8.5 a8 8 0 0 1 8 -8 H%d a8 8 0 0 1 8 8 V%d z" fill="#f6f8fa" stroke="#d0d7de"/>
<circle cx="20" cy="17" r="5.5" fill="#ff8182"/><circle cx="39" cy="17" r="5.5" fill="#eac54f"/><circle cx="58" cy="17" r="5.5" fill="#4ac26b"/>
%s</svg>
`, width, height, width, height, escape(d.Command), style, width-1, height-1, bar, width-9, bar, p.out.String())
	return err
}

// page is a grid of characters.
type page struct {
	out bytes.Buffer
	row int
}

func (p *page) next() { p.row++ }

func (p *page) y() int { return bar + margin/2 + (p.row+1)*line - (line-fontSize)/2 }

func (p *page) text(column int, class, text string) {
	attribute := ""
	if class != "" {
		attribute = ` class="` + class + `"`
	}
	fmt.Fprintf(&p.out, "<text x=\"%g\" y=\"%d\"%s>%s</text>\n", margin+float64(column)*glyph, p.y(), attribute, escape(text))
}

// number writes text that ends at a column.
func (p *page) number(column int, text string) {
	fmt.Fprintf(&p.out, "<text x=\"%g\" y=\"%d\" class=\"num\">%s</text>\n", margin+float64(column)*glyph, p.y(), escape(text))
}

// table writes rows. Each column is as wide as its longest text.
func (p *page) table(rows [][]string) {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, r := range rows {
		p.next()
		class := ""
		if i == 0 {
			class = "dim"
		}
		column := nameColumn
		for k, cell := range r {
			p.text(column, class, cell)
			column += widths[k] + 2
		}
	}
	if len(rows) > 0 {
		p.next()
	}
}

// wrap cuts text at spaces into parts of at most n characters. It cuts longer words, too.
func wrap(text string, n int) []string {
	var parts []string
	part := ""
	for _, word := range strings.Fields(text) {
		for utf8.RuneCountInString(word) > n {
			if part != "" {
				parts, part = append(parts, part), ""
			}
			r := []rune(word)
			parts, word = append(parts, string(r[:n])), string(r[n:])
		}
		switch {
		case part == "":
			part = word
		case utf8.RuneCountInString(part)+1+utf8.RuneCountInString(word) <= n:
			part += " " + word
		default:
			parts, part = append(parts, part), word
		}
	}
	return append(parts, part)
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder returns no errors
	return b.String()
}
