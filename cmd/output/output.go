// Package output prints the results of commands: as a table for people, or as JSON for programs. It makes text of
// others visible (package visible), so that no name or message reaches a terminal unchanged.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/visible"
)

// Flag returns the flag --output, which sets *to.
func Flag(to *string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT`: table or json", Value: "table", Destination: to,
		Action: func(_ *cli.Context, format string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("--output %q: expected table or json", format)
			}
			return nil
		}}
}

// Write prints v as JSON if format is "json". Otherwise it calls table.
func Write(w io.Writer, format string, v any, table func(io.Writer) error) error {
	if format != "json" {
		return table(w)
	}
	return JSON(w, v)
}

// JSON prints v as indented JSON.
func JSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(visible.JSON(b.Bytes()))
	return err
}

// JSONLine prints v as JSON on one line.
func JSONLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(append(visible.JSON(b), '\n'))
	}
	return err
}

// Line prints one line.
func Line(w io.Writer, text string) { fmt.Fprintln(w, visible.Text(text)) }

// Table is a table with aligned columns. Flush must be called at the end.
type Table struct{ w *tabwriter.Writer }

// Columns returns an empty Table that prints to w.
func Columns(w io.Writer) Table { return Table{tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)} }

// Row adds a row.
func (t Table) Row(cells ...string) {
	shown := make([]string, len(cells))
	for i, c := range cells {
		shown[i] = visible.Text(c)
	}
	fmt.Fprintln(t.w, strings.Join(shown, "\t"))
}

// Flush prints the rows.
func (t Table) Flush() error { return t.w.Flush() }
