// Package output is how commands print: as a table for people, or as JSON for programs.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// Flag is --output.
func Flag(to *string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT`: table or json", Value: "table", Destination: to,
		Action: func(_ *cli.Context, format string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("--output %q: expected table or json", format)
			}
			return nil
		}}
}

// Write prints v as JSON, or what table prints.
func Write(w io.Writer, format string, v any, table func(io.Writer) error) error {
	if format != "json" {
		return table(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Columns aligns tab-separated columns. Flush it.
func Columns(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 3, ' ', 0) }
