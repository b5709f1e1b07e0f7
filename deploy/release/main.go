// Command release makes the files of a release without Docker, a registry or Helm: the container image, the programs,
// the chart and the manifests, their bill of materials and their checksums. The same tree and version give the same
// files, byte for byte, wherever and whenever they are made.
//
//	go run ./deploy/release [-version VERSION] [-out DIR] image|chart|all
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"tapestry.dev/tapestry/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// epochVariable has the time that reproducible builds give to everything in them
// (https://reproducible-builds.org/specs/source-date-epoch/).
const epochVariable = "SOURCE_DATE_EPOCH"

func run(ctx context.Context, args []string) error {
	var r release
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.StringVar(&r.root, "root", ".", "`DIR` of the repository")
	flags.StringVar(&r.out, "out", "dist", "`DIR` for what is made")
	flags.StringVar(&r.version, "version", version.Unknown, "`VERSION` that programs tell: a tag or commit")
	flags.StringVar(&r.golang, "go", "go", "the go `COMMAND`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	seconds := int64(0)
	if text := os.Getenv(epochVariable); text != "" {
		var err error
		if seconds, err = strconv.ParseInt(text, 10, 64); err != nil || seconds < 0 {
			return fmt.Errorf("%s is %q: expected seconds since 1970", epochVariable, text)
		}
	}
	r.time = time.Unix(seconds, 0).UTC()
	if err := r.complete(); err != nil {
		return err
	}
	make := map[string]func(context.Context) error{"image": r.image, "chart": r.chartAndManifests, "all": r.all}[flags.Arg(0)]
	if flags.NArg() != 1 || make == nil {
		return errors.New("expected one of image, chart and all")
	}
	return make(ctx)
}

// release is one run.
type release struct {
	root, out, version, golang string
	time                       time.Time

	// name is the version of the image and the chart: the version of a release, otherwise the version in the chart.
	name  string
	chart chart
}

func (r *release) complete() error {
	var err error
	if r.out, err = filepath.Abs(r.out); err != nil {
		return err
	}
	if r.root, err = filepath.Abs(r.root); err != nil {
		return err
	}
	if r.chart, err = readChart(filepath.Join(r.root, "deploy", "chart")); err != nil {
		return err
	}
	r.name = releaseName(r.version, r.chart.version)
	return nil
}

// image makes only the image, in a file whose name does not contain the version.
func (r *release) image(ctx context.Context) error {
	built, err := r.build(ctx, inImage)
	if err != nil {
		return err
	}
	return r.writeImage(filepath.Join(r.out, "tapestry-image.tar"), built)
}

// chartAndManifests makes the chart's package, and the manifests rendered from it.
func (r *release) chartAndManifests(ctx context.Context) error {
	_, err := r.writeChart(ctx)
	return err
}

// all makes everything, the checksums last.
func (r *release) all(ctx context.Context) error {
	if err := removeOld(r.out); err != nil {
		return err
	}
	built, err := r.build(ctx, programs)
	if err != nil {
		return err
	}
	var files []string
	for _, arch := range arches {
		name := fmt.Sprintf("tapestry-%s-linux-%s", r.name, arch)
		if err := r.writePrograms(filepath.Join(r.out, name+".tar.gz"), name, built[arch]); err != nil {
			return err
		}
		files = append(files, name+".tar.gz")
	}
	im := "tapestry-" + r.name + "-image.tar"
	if err := r.writeImage(filepath.Join(r.out, im), built); err != nil {
		return err
	}
	bill := "tapestry-" + r.name + ".spdx.json"
	if err := r.writeBill(filepath.Join(r.out, bill), built); err != nil {
		return err
	}
	charts, err := r.writeChart(ctx)
	if err != nil {
		return err
	}
	return writeSums(r.out, append(append(files, im, bill), charts...))
}
