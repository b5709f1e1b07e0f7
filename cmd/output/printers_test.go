package output

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"tapestry.dev/tapestry/visible/visibletest"
)

// own lists the files of commands that print by themselves, and why text of others cannot reach a terminal there.
var own = map[string]string{
	"output/output.go":                  "it makes text visible",
	"program/program.go":                "errors are made visible there",
	"tapestry-cni/main.go":              "a version of ours",
	"announcer/announcer.go":            "words of ours, and a version of ours",
	"tapestry/controller/controller.go": "two words of ours",
	"tapestry/app/cni.go":               "notes of the installer about files of ours",
	"tapestry/connectivity/command.go":  "a sum",
	"tapestry/health/health.go":         "errors are made visible there",
	"tapestry/status/status.go":         "headings",
	"tapestry/bugreport/machine.go":     "what the kernel tells, for a file",
	"tapestry-lab/app/lab_table.go":     "headings",
	"tapestry-lab/app/lab.go":           "the name of the lab, which whoever reads it gave",
	"tapestry-lab/app/bench.go":         "measurements of ours",
	"tapestry-lab/app/demo.go":          "what steps saw is made visible there",
	"tapestry-lab/inside/inside.go":     "for programs of ours",
}

// TestPrinters finds commands that print without this package, so that nothing makes text of others visible.
func TestPrinters(t *testing.T) {
	found := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel("..", path)
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && prints(x.Name, sel.Sel.Name) {
				found[name] = true
				if own[name] == "" {
					t.Errorf("%s uses %s.%s: print what others may have written through package output", name, x.Name, sel.Sel.Name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range own {
		if !found[name] {
			t.Errorf("%s prints nothing by itself any more: take it off the list", name)
		}
	}
}

// prints reports whether a function writes text, or returns something that does.
func prints(pkg, name string) bool {
	switch pkg {
	case "fmt":
		return strings.HasPrefix(name, "Print") || strings.HasPrefix(name, "Fprint")
	case "json":
		return name == "NewEncoder"
	case "tabwriter":
		return name == "NewWriter"
	case "os":
		return name == "Stdout"
	}
	return false
}

func TestHostile(t *testing.T) {
	var out strings.Builder
	Line(&out, visibletest.Hostile)
	visibletest.Check(t, "a line", out.String())
	out.Reset()
	table := Columns(&out)
	table.Row("A", visibletest.Hostile, "C")
	table.Row("one", "two", "three")
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "a table", out.String())
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("two rows are %d lines:\n%s", n, out.String())
	}
	out.Reset()
	if err := Write(&out, "json", map[string]string{"k": visibletest.Hostile}, nil); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "JSON", out.String())
}
