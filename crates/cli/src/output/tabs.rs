//! Columns from tabs, as Go's `text/tabwriter` makes them with Docker's settings: cells at least 10 wide, 3 apart.

const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Aligns the cells of `text`, which end at tabs; the last cell of a line belongs to no column.
pub(crate) fn align(text: &str) -> String {
    align_with(text, MIN_WIDTH, PADDING)
}

pub(crate) fn align_with(text: &str, min_width: usize, padding: usize) -> String {
    let lines: Vec<Vec<&str>> = text
        .strip_suffix('\n')
        .unwrap_or(text)
        .split('\n')
        .map(|line| line.split('\t').collect())
        .collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|line| vec![0; line.len()]).collect();
    for column in 0..columns {
        // A column is a run of lines that all have it.
        let mut start = 0;
        while start < lines.len() {
            let has = |line: usize| lines[line].len() > column + 1;
            if !has(start) {
                start += 1;
                continue;
            }
            let end = (start..lines.len())
                .find(|&line| !has(line))
                .unwrap_or(lines.len());
            let width = lines[start..end]
                .iter()
                .map(|line| width(line[column]) + padding)
                .max()
                .unwrap_or(0)
                .max(min_width);
            for line in &mut widths[start..end] {
                line[column] = width;
            }
            start = end;
        }
    }
    let mut aligned = String::with_capacity(text.len() * 2);
    for (cells, widths) in lines.iter().zip(&widths) {
        for (cell, &column) in cells.iter().zip(widths) {
            aligned.push_str(cell);
            for _ in width(cell)..column {
                aligned.push(' ');
            }
        }
        aligned.push('\n');
    }
    aligned
}

/// Columns that a text takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// 2 for East Asian wide and full-width characters (Unicode TR 11).
pub(crate) fn char_width(c: char) -> usize {
    let wide = matches!(u32::from(c),
        0x1100..=0x115F | 0x2E80..=0x303E | 0x3041..=0x33FF | 0x3400..=0x4DBF | 0x4E00..=0x9FFF
        | 0xA000..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6 | 0x1F300..=0x1F64F | 0x1F900..=0x1F9FF | 0x20000..=0x3FFFD);
    if wide { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_ten_wide_and_three_apart() {
        assert_eq!(
            align("ID\tNAME\tPORTS\nabcdefghijkl\tweb\t\n"),
            "ID             NAME      PORTS\nabcdefghijkl   web       \n"
        );
        assert_eq!(
            align("a\tb\nnone\nccccccccccccc\td\n"),
            "a         b\nnone\nccccccccccccc   d\n"
        );
        assert_eq!(align("日本\tx\n"), "日本      x\n");
    }
}
