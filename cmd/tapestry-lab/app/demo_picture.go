package app

import (
	"bytes"
	"os"

	"tapestry.dev/tapestry/test/steps/picture"
)

// pictureView records what another view shows, to draw it later.
type pictureView struct {
	view
	file string
	demo picture.Demo
}

func newPictureView(v view, file string) *pictureView {
	return &pictureView{view: v, file: file, demo: picture.Demo{Command: "make demo"}}
}

func (v *pictureView) end(r result) {
	v.demo.Steps = append(v.demo.Steps, picture.Step(r))
	v.view.end(r)
}

func (v *pictureView) table(rows [][]string) {
	v.demo.Table = rows
	v.view.table(rows)
}

// say records the first sentence, which is the outcome. The other sentences say what to try next.
func (v *pictureView) say(text string) {
	if v.demo.Closing == "" {
		v.demo.Closing = text
	}
	v.view.say(text)
}

// draw writes the picture to the file.
func (v *pictureView) draw() error {
	var b bytes.Buffer
	if err := picture.Write(&b, v.demo); err != nil {
		return err
	}
	return os.WriteFile(v.file, b.Bytes(), 0o644)
}
