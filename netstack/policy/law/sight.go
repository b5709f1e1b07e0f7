package law

import "encoding/binary"

// sight is what selectors look at: keys of labels, with the values that they mention.
type sight map[string]looked

// looked has the numbers of a key and of its values, the latter from 1 on.
type looked struct {
	number uint32
	values map[string]uint32
}

func (s sight) learn(one Selector) {
	for i := range one {
		r := &one[i]
		key, known := s[r.Key]
		if !known {
			key = looked{uint32(len(s)), map[string]uint32{}}
			s[r.Key] = key
		}
		for _, v := range r.Values {
			if key.values[v] == 0 {
				key.values[v] = uint32(len(key.values) + 1)
			}
		}
	}
}

// appendKey appends what is the same for labels that the selectors cannot tell from each other. Nothing else that it
// appends begins with the same.
func (s sight) appendKey(key []byte, l Labels) []byte {
	for i := range l {
		if k, there := s[l[i].Key]; there {
			key = binary.LittleEndian.AppendUint32(key, k.number+1)
			key = binary.LittleEndian.AppendUint32(key, k.values[l[i].Value])
		}
	}
	return binary.LittleEndian.AppendUint32(key, 0)
}
