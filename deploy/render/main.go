// Command render renders the chart like helm template, for those who have no helm. It makes the plain manifests of this
// repository, and manifests with other values.
//
//	go -C deploy/render run . -f values.yaml --set 'apiServers={https://192.168.1.10:6443}' >tapestry.yaml
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/strvals"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

// several is a flag that may be given more than once.
type several []string

func (s *several) String() string { return strings.Join(*s, " ") }

func (s *several) Set(v string) error {
	*s = append(*s, v)
	return nil
}

func run(args []string, out io.Writer) error {
	var files, sets several
	flags := flag.NewFlagSet("render", flag.ContinueOnError)
	chart := flags.String("chart", "../chart", "`DIR` of the chart")
	namespace := flags.String("namespace", "kube-system", "`NAME` of the namespace for what has one")
	flags.Var(&files, "f", "`FILE` of values; a later one goes before an earlier one")
	flags.Var(&sets, "set", "`KEY=VALUE[,...]` as helm's --set, which goes before files")
	if err := flags.Parse(args); err != nil {
		return err
	}
	values := map[string]any{}
	for _, f := range files {
		v, err := chartutil.ReadValuesFile(f)
		if err != nil {
			return fmt.Errorf("read values from %s: %w", f, err)
		}
		values = chartutil.CoalesceTables(v, values) // the first argument takes precedence
	}
	for _, s := range sets {
		if err := strvals.ParseInto(s, values); err != nil {
			return fmt.Errorf("--set %q: %w", s, err)
		}
	}
	return render(*chart, *namespace, values, out)
}

// render writes the objects of the chart in dir, in the order in which helm creates them.
func render(dir, namespace string, values map[string]any, out io.Writer) error {
	c, err := loader.Load(dir)
	if err != nil {
		return fmt.Errorf("load the chart: %w", err)
	}
	release := chartutil.ReleaseOptions{Name: "tapestry", Namespace: namespace, IsInstall: true, Revision: 1}
	all, err := chartutil.ToRenderValues(c, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return fmt.Errorf("merge the values: %w", err)
	}
	all["Release"].(map[string]any)["Service"] = "manifests"
	texts, err := engine.Render(c, all)
	if err != nil {
		return err
	}
	for name := range texts {
		if strings.HasPrefix(name[strings.LastIndexByte(name, '/')+1:], "_") {
			delete(texts, name)
		}
	}
	_, list, err := releaseutil.SortManifests(texts, nil, releaseutil.InstallOrder)
	if err != nil {
		return err
	}
	for _, m := range list {
		if _, err := fmt.Fprintf(out, "---\n%s\n", strings.TrimSpace(m.Content)); err != nil {
			return err
		}
	}
	return nil
}
