# gnuplot -c plot.gp DATA SVG ORIGIN COMMAND: one TCP stream by MTU between the hosts. DATA has one column
# for the kernel's VXLAN and one for each of the three suites.
set datafile separator tab
set terminal svg noenhanced size 760,440 font "sans-serif,13" background "white"
set output ARG2
set tmargin at screen 0.87
set bmargin at screen 0.25
set label 1 "One TCP stream between two containers" at screen 0.5,0.95 center
set label 2 ARG3 at screen 0.5,0.90 center font ",11"
set label 3 ARG4 at screen 0.5,0.03 center font ",10"
set xlabel "segments as long as an MTU of so many octets between the hosts carries"
set ylabel "Gbit/s"
set yrange [0:*]
set xrange [-0.3:*]
set offsets 0, 0.3, 0, 0
set grid ytics
set key at screen 0.5,0.09 center horizontal
plot for [column=2:5] ARG1 using 0:column:xticlabels(1) with linespoints linewidth 2 pointtype 7 pointsize 0.6 title columnheader(column)
