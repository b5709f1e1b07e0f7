package image

import "path/filepath"

// Tapestry gives the image of this repository's own programs, which bin has, without a tag. loopback is the path of that CNI
// plugin: containerd 1.6 runs it for every pod, whatever the network.
func (c Cache) Tapestry(bin, loopback string) (Image, error) {
	// Each in a layer of its own: the one that changed is the one that is packed again.
	var layers []Layer
	for _, f := range []File{
		{Name: "loopback", Source: loopback},
		{Name: "tapestry-cni", Source: filepath.Join(bin, "tapestry-cni")},
		{Name: "tapestry", Source: filepath.Join(bin, "tapestry")},
	} {
		l, err := c.Files(f)
		if err != nil {
			return Image{}, err
		}
		layers = append(layers, l)
	}
	return Image{Layers: layers, Config: Config{Entrypoint: []string{"/tapestry"}}}, nil
}

// Program gives an image of one static program.
func (c Cache) Program(tag, program string) (Image, error) {
	l, err := c.Files(File{Name: "etc/"}, File{Name: "tmp/", Mode: 0o1777}, File{Name: "program", Source: program})
	return Image{Tags: []string{tag}, Layers: []Layer{l}, Config: Config{Entrypoint: []string{"/program"}, Env: path}}, err
}
